// spd_logdet on the device: see spd_logdet.h for what it computes. Small matrices are factored in registers by a group
// of lanes each, larger ones in shared memory by a block each. Nothing is allocated and nothing synchronises.
// A symmetric matrix stored in full may be passed transposed (A.mT): lanes then read neighbouring addresses.
#include "core/check.h"
#include "core/cuda/cholesky_block.cuh"
#include "core/cuda/matrix_batch.cuh"
#include "core/dispatch.h"
#include "ops/coding_rate/spd_logdet.h"

namespace subspan {
namespace {

template <class T>
struct Problem {
  MatrixBatch<T> matrices;
  T* logdet;           // (count)
  T* inverse;          // (count, n, n) or null
  std::int32_t* info;  // (count) or null
  int n;
  bool implicit_identity;
};

template <class T>
__device__ void write_summary(const Problem<T>& problem, const PivotSummary<T>& summary, std::int64_t index) {
  problem.logdet[index] = summary.logdet();
  if (problem.info) problem.info[index] = summary.info(problem.implicit_identity);
}

template <class T, int N, int G, bool Inverse>
__global__ void __launch_bounds__(kBlockThreads) spd_logdet_group(const Problem<T> problem, std::int64_t first) {
  constexpr int R = N / G;
  const int n = problem.n, lane = threadIdx.x % G;
  const std::int64_t index = first + (std::int64_t(blockIdx.x) * kBlockThreads + threadIdx.x) / G;
  // Groups past the end work on the last matrix and write nothing: an early return would leave the shuffles' mask.
  const bool live = index < problem.matrices.count;
  const T* matrix = problem.matrices[live ? index : problem.matrices.count - 1];

  T a[R][N], pivot[R];
  load_group<Inverse>(a, matrix, problem.matrices.row_stride, problem.matrices.col_stride, n, lane);
  factor_group<Inverse>(a, pivot, n, problem.implicit_identity, lane);

  PivotSummary<T> summary;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = r * G + lane;
    if (row < n) summary.add(pivot[r], row, problem.implicit_identity);
  }
  summary.template combine<G>();
  if (!live) return;
  if (lane == 0) write_summary(problem, summary, index);
  if constexpr (Inverse) {
    T* out = problem.inverse + index * n * n;
    const T sign = summary.failed() ? kNaN<T> : T(-1);
    // The inverse is symmetric: written column by column, lanes have neighbouring addresses.
    visit_swept(a, n, lane, [&](int row, int col, T entry) { out[col * n + row] = sign * entry; });
  }
}

template <class T, bool Inverse>
__global__ void __launch_bounds__(kBlockThreads) spd_logdet_block(const Problem<T> problem, std::int64_t first) {
  const std::int64_t index = first + blockIdx.x;
  const int n = problem.n;
  const BlockMatrix<T> m(dynamic_shared<T>(), n);
  load_block<Inverse>(m, problem.matrices[index], problem.matrices.row_stride, problem.matrices.col_stride);
  __syncthreads();
  factor_block<Inverse>(m, problem.implicit_identity);

  PivotSummary<T> summary;  // every warp computes it: cheaper than telling the others whether the matrix failed
  for (int row = threadIdx.x % kWarp; row < n; row += kWarp) summary.add(m.pivot[row], row, problem.implicit_identity);
  summary.template combine<kWarp>();
  if (threadIdx.x == 0) write_summary(problem, summary, index);
  if constexpr (Inverse) {
    T* out = problem.inverse + index * n * n;
    const T sign = summary.failed() ? kNaN<T> : T(-1);
    for (int row = threadIdx.x / kWarp; row < n; row += kBlockThreads / kWarp) {
      for (int col = threadIdx.x % kWarp; col < n; col += kWarp) out[row * n + col] = sign * m.at(col, row);
    }
  }
}

template <int N, int G, bool Inverse, class T>
void launch_group(const Problem<T>& problem, void* stream) {
  constexpr int per_block = kBlockThreads / G;
  for_each_grid(problem.matrices.count, per_block, [&](std::int64_t first, std::int64_t count) {
    launch(spd_logdet_group<T, N, G, Inverse>, (count + per_block - 1) / per_block, kBlockThreads, 0, stream, problem,
           first);
  });
}

template <bool Inverse, class T>
void launch_block(const Problem<T>& problem, void* stream) {
  for_each_grid(problem.matrices.count, 1, [&](std::int64_t first, std::int64_t count) {
    launch(spd_logdet_block<T, Inverse>, count, kBlockThreads, BlockMatrix<T>::bytes(problem.n), stream, problem,
           first);
  });
}

template <bool Inverse, class T>
void launch_for_size(const Problem<T>& problem, void* stream) {
  const bool grouped = for_group_shape<T, Inverse>(
      problem.n, [&](auto shape) { launch_group<decltype(shape)::N, decltype(shape)::G, Inverse>(problem, stream); });
  if (!grouped) launch_block<Inverse>(problem, stream);
}

}  // namespace

std::int64_t spd_logdet_cuda_max_size(DType dtype, int device) {
  return dispatch_float(dtype, "spd_logdet", [&](auto tag) -> std::int64_t {
    return largest_block_order<typename decltype(tag)::type>(shared_bytes_limit(device));
  });
}

void spd_logdet_cuda(const TensorView& A, const TensorView& logdet, const TensorView* inverse, const TensorView* info,
                     bool implicit_identity, void* stream) {
  check_spd_logdet(A, logdet, inverse, info, kKernelDevice);
  const std::int64_t n = A.size(-1), limit = spd_logdet_cuda_max_size(A.dtype, A.device_id);
  CHECK(n <= limit, "spd_logdet: A: expected matrices of order at most ", limit, " (shared memory of the device), got ",
        n);
  DeviceGuard guard(A.device_id);
  dispatch_float(A.dtype, "spd_logdet", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Problem<T> problem{MatrixBatch<T>(A),
                             logdet.ptr<T>(),
                             inverse ? inverse->ptr<T>() : nullptr,
                             info ? info->ptr<std::int32_t>() : nullptr,
                             static_cast<int>(n),
                             implicit_identity};
    if (problem.matrices.count == 0) return;
    inverse ? launch_for_size<true>(problem, stream) : launch_for_size<false>(problem, stream);
  });
}

}  // namespace subspan
