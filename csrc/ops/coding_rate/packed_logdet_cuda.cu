// packed_logdet on the device: see packed_logdet.h for what it computes. As spd_logdet_cuda.cu, with matrices read from
// and written to packed triangles, which halves the traffic. Nothing is allocated and nothing synchronises.
#include "core/check.h"
#include "core/cuda/packed_triangle.cuh"
#include "core/dispatch.h"
#include "ops/coding_rate/packed_logdet.h"

namespace subspan {
namespace {

template <class T>
struct Problem {
  const T* packed;     // (count, entries)
  const T* scale;      // (count)
  T* logdet;           // (count)
  std::int32_t* info;  // (count) or null
  T* gradient;         // (count, entries) or null; may be `packed`
  std::int64_t count;
  int n, entries;
};

template <class T>
__device__ void write_summary(const Problem<T>& problem, const PivotSummary<T>& summary, std::int64_t index) {
  problem.logdet[index] = summary.logdet();
  if (problem.info) problem.info[index] = summary.info(true);
}

// An entry of the swept matrix, which is minus the inverse, as the triangle's entry stands for it.
template <class T>
__device__ T gradient_entry(const PivotSummary<T>& summary, int row, int col, T swept) {
  return (summary.failed() ? kNaN<T> : T(row == col ? -1 : -2)) * swept;
}

template <class T, int N, int G, bool Inverse>
__global__ void __launch_bounds__(kBlockThreads) packed_logdet_group(const Problem<T> problem, std::int64_t first) {
  constexpr int R = N / G;
  const int n = problem.n, lane = threadIdx.x % G;
  const std::int64_t index = first + (std::int64_t(blockIdx.x) * kBlockThreads + threadIdx.x) / G;
  // Groups past the end work on the last matrix and write nothing: an early return would leave the shuffles' mask.
  const bool live = index < problem.count;
  const std::int64_t source = live ? index : problem.count - 1;

  T a[R][N], pivot[R];
  load_group_packed<Inverse>(a, problem.packed + source * problem.entries, problem.scale[source], n, lane);
  factor_group<Inverse>(a, pivot, n, true, lane);

  PivotSummary<T> summary;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int row = r * G + lane;
    if (row < n) summary.add(pivot[r], row, true);
  }
  summary.template combine<G>();
  if (!live) return;
  if (lane == 0) write_summary(problem, summary, index);
  if constexpr (Inverse) {
    T* out = problem.gradient + index * problem.entries;
    visit_swept(a, n, lane, [&](int row, int col, T entry) {
      if (row >= col) out[row_start(col, n) + row] = gradient_entry(summary, row, col, entry);
    });
  }
}

template <class T, bool Inverse>
__global__ void __launch_bounds__(kBlockThreads) packed_logdet_block(const Problem<T> problem, std::int64_t first) {
  const std::int64_t index = first + blockIdx.x;
  const int n = problem.n;
  const BlockMatrix<T> m(dynamic_shared<T>(), n);
  load_block_packed<Inverse>(m, problem.packed + index * problem.entries, problem.scale[index]);
  __syncthreads();
  factor_block<Inverse>(m, true);

  PivotSummary<T> summary;  // every warp computes it: cheaper than telling the others whether the matrix failed
  for (int row = threadIdx.x % kWarp; row < n; row += kWarp) summary.add(m.pivot[row], row, true);
  summary.template combine<kWarp>();
  if (threadIdx.x == 0) write_summary(problem, summary, index);
  if constexpr (Inverse) {
    T* out = problem.gradient + index * problem.entries;
    for (int col = threadIdx.x / kWarp; col < n; col += kBlockThreads / kWarp) {
      for (int row = col + threadIdx.x % kWarp; row < n; row += kWarp) {
        out[row_start(col, n) + row] = gradient_entry(summary, row, col, m.at(row, col));
      }
    }
  }
}

template <bool Inverse, class T>
void launch_for_size(const Problem<T>& problem, void* stream) {
  const bool grouped = for_group_shape<T, Inverse>(problem.n, [&](auto shape) {
    constexpr int N = decltype(shape)::N, G = decltype(shape)::G, per_block = kBlockThreads / G;
    for_each_grid(problem.count, per_block, [&](std::int64_t first, std::int64_t count) {
      launch(packed_logdet_group<T, N, G, Inverse>, (count + per_block - 1) / per_block, kBlockThreads, 0, stream,
             problem, first);
    });
  });
  if (grouped) return;
  for_each_grid(problem.count, 1, [&](std::int64_t first, std::int64_t count) {
    launch(packed_logdet_block<T, Inverse>, count, kBlockThreads, BlockMatrix<T>::bytes(problem.n), stream, problem,
           first);
  });
}

}  // namespace

std::int64_t packed_logdet_cuda_max_size(DType dtype, int device) {
  return dispatch_float(dtype, "packed_logdet", [&](auto tag) -> std::int64_t {
    return largest_block_order<typename decltype(tag)::type>(shared_bytes_limit(device));
  });
}

void packed_logdet_cuda(const TensorView& packed, const TensorView& scale, const TensorView& logdet,
                        const TensorView* info, const TensorView* gradient, void* stream) {
  check_packed_logdet(packed, scale, logdet, info, gradient, kKernelDevice);
  const std::int64_t n = triangle_order(packed.size(-1));
  const std::int64_t limit = packed_logdet_cuda_max_size(packed.dtype, packed.device_id);
  CHECK(n <= limit, "packed_logdet: packed: expected matrices of order at most ", limit,
        " (shared memory of the device), got ", n);
  DeviceGuard guard(packed.device_id);
  dispatch_float(packed.dtype, "packed_logdet", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Problem<T> problem{packed.ptr<const T>(),
                             scale.ptr<const T>(),
                             logdet.ptr<T>(),
                             info ? info->ptr<std::int32_t>() : nullptr,
                             gradient ? gradient->ptr<T>() : nullptr,
                             scale.numel(),
                             static_cast<int>(n),
                             static_cast<int>(packed.size(-1))};
    if (problem.count == 0) return;
    gradient ? launch_for_size<true>(problem, stream) : launch_for_size<false>(problem, stream);
  });
}

}  // namespace subspan
