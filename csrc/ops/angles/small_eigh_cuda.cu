// small_eigh on the device: see small_eigh.h for what it computes. Groups of 4, 8, 16 or 32 lanes work on a matrix
// each, in shared memory. Nothing is allocated and nothing synchronises.
#include "core/check.h"
#include "core/cuda/jacobi_shared.cuh"
#include "core/cuda/matrix_batch.cuh"
#include "core/dispatch.h"
#include "ops/angles/small_eigh.h"

namespace subspan {
namespace {

constexpr int kThreads = 128;

template <class T>
struct Problem {
  MatrixBatch<T> matrices;
  T* values;           // (count, n)
  T* vectors;          // (count, n, n) or null
  std::int32_t* info;  // (count) or null
  int n;
};

template <class T, int K, bool Vectors>
__global__ void __launch_bounds__(kThreads) small_eigh_group(const Problem<T> problem, std::int64_t first) {
  const int n = problem.n, lane = threadIdx.x % K;
  const std::int64_t index = first + (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) / K;
  // Groups past the end work on the last matrix and write nothing: an early return would leave the shuffles' mask.
  const bool live = index < problem.matrices.count;
  const T* matrix = problem.matrices[live ? index : problem.matrices.count - 1];
  const std::int64_t row_stride = problem.matrices.row_stride, col_stride = problem.matrices.col_stride;

  using Shared = SharedSymmetric<T, K>;
  const Shared m(dynamic_shared<T>() + threadIdx.x / K * Shared::entries(Vectors), Vectors);
  Magnitude<T> magnitude;
#pragma unroll 1
  for (int i = 0; i < K; ++i) {
    const int row = i > lane ? i : lane, col = i > lane ? lane : i;
    const T entry = row < n ? matrix[row * row_stride + col * col_stride] : T(0);
    m.at(i, lane) = entry;
    magnitude.add(entry);
  }
  magnitude.template combine<K>();
  const T factor = magnitude.factor(), power = magnitude.power(), poison = magnitude.poison;
  for (int i = 0; i < K; ++i) m.at(i, lane) *= factor;
  const bool unsettled = eigh_group<Precision::kNormwise, Vectors>(m, n, lane);
  if (!live || lane >= n) {
    if (live && lane == 0 && problem.info) problem.info[index] = 0;  // of order 0
    return;
  }
  if (lane == 0 && problem.info) problem.info[index] = unsettled;

  const T value = m.at(lane, lane);
  int place = 0;
  for (int c = 0; c < n; ++c) {
    const T other = m.at(c, c);
    place += other < value || (!(value < other) && c < lane);
  }
  problem.values[index * n + place] = value * power + poison;
  if constexpr (Vectors) {
    T* vectors = problem.vectors + index * n * n + place;
    for (int i = 0; i < n; ++i) vectors[i * n] = m.vectors[i * m.kStride + lane] + poison;
  }
}

template <int K, bool Vectors, class T>
void launch_group(const Problem<T>& problem, void* stream) {
  constexpr int per_block = kThreads / K;
  constexpr std::size_t bytes = per_block * sizeof(T) * SharedSymmetric<T, K>::entries(Vectors);
  for_each_grid(problem.matrices.count, per_block, [&](std::int64_t first, std::int64_t count) {
    launch(small_eigh_group<T, K, Vectors>, (count + per_block - 1) / per_block, kThreads, bytes, stream, problem,
           first);
  });
}

template <bool Vectors, class T>
void launch_for_size(const Problem<T>& problem, void* stream) {
  if (problem.n <= 4) return launch_group<4, Vectors>(problem, stream);
  if (problem.n <= 8) return launch_group<8, Vectors>(problem, stream);
  if (problem.n <= 16) return launch_group<16, Vectors>(problem, stream);
  launch_group<32, Vectors>(problem, stream);
}

}  // namespace

void small_eigh_cuda(const TensorView& A, const TensorView& values, const TensorView* vectors, const TensorView* info,
                     void* stream) {
  check_small_eigh(A, values, vectors, info, kKernelDevice);
  CHECK(A.size(-1) <= kWarp, "small_eigh: A: expected matrices of order at most ", kWarp, ", got ", A.size(-1));
  DeviceGuard guard(A.device_id);
  dispatch_float(A.dtype, "small_eigh", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Problem<T> problem{MatrixBatch<T>(A), values.ptr<T>(), vectors ? vectors->ptr<T>() : nullptr,
                             info ? info->ptr<std::int32_t>() : nullptr, static_cast<int>(A.size(-1))};
    if (problem.matrices.count == 0) return;
    vectors ? launch_for_size<true>(problem, stream) : launch_for_size<false>(problem, stream);
  });
}

}  // namespace subspan
