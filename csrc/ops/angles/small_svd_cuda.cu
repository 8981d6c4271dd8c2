// small_svd on the device: see small_svd.h for what it computes. Matrices of up to 4 x 4 are done by a thread each, of
// up to 32 x 32 in registers by a group of lanes each, longer ones in shared memory by a warp each. Nothing is
// allocated and nothing synchronises.
#include "core/check.h"
#include "core/cuda/jacobi_shared.cuh"
#include "core/cuda/matrix_batch.cuh"
#include "core/dispatch.h"
#include "ops/angles/small_svd.h"

namespace subspan {
namespace {

constexpr int kThreads = 128;
constexpr int kThreadOrder = 4;

// The method orthogonalises columns. A wide matrix is seen as its transpose: rows >= columns.
template <class T>
struct Problem {
  MatrixBatch<T> matrices;
  T* values;           // (count, columns)
  T* basis;            // entry (i, c) of the long factor of a matrix at i * basis_row + c * basis_col; or null
  T* rotations;        // of the square factor
  std::int32_t* info;  // (count) or null
  int rows, columns;
  int basis_row, basis_col, rotations_row, rotations_col;
  T threshold;
};

template <class T>
__device__ bool dependent(T norm, T longest) {
  return norm <= jacobi::kNegligible<T> * longest;
}

// A norm of 0 or NaN stays what it is.
template <class T>
__device__ T reciprocal_norm(T norm) {
  return norm == 0 ? T(1) : 1 / norm;
}

// What makes the rotations of an item that is not finite NaN, as its scaled columns all are.
template <class T>
__device__ T poison_of(T longest) {
  return longest * 0;
}

template <class T, bool Vectors>
__global__ void __launch_bounds__(kThreads) small_svd_thread(const Problem<T> problem, std::int64_t first) {
  constexpr int N = kThreadOrder;
  const int rows = problem.rows, columns = problem.columns;
  const std::int64_t index = first + std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= problem.matrices.count) return;
  const T* matrix = problem.matrices[index];

  T x[N][N], right[N][N];
  Magnitude<T> magnitude;
#pragma unroll
  for (int c = 0; c < N; ++c) {
    load_column(x[c], matrix + c * problem.matrices.col_stride, problem.matrices.row_stride, 0, rows, columns - c, 0);
#pragma unroll
    for (int i = 0; i < N; ++i) magnitude.add(x[c][i]);
  }
  const T factor = magnitude.factor(), power = magnitude.power();
#pragma unroll
  for (int c = 0; c < N; ++c) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[c][i] *= factor;
  }
  const bool unsettled = svd_thread<Vectors>(x, right, problem.threshold);
  if (problem.info) problem.info[index] = unsettled;

  T norms[N];
  int solid = N;
#pragma unroll
  for (int c = N - 1; c >= 0; --c) norms[c] = std::sqrt(dot(x[c], x[c]));
#pragma unroll
  for (int c = N - 1; c >= 0; --c) {
    if (c < columns) problem.values[index * columns + c] = norms[c] * power;
    if (dependent(norms[c], norms[0])) solid = c;
  }
  if constexpr (Vectors) {
    const T poison = poison_of(norms[0]);
#pragma unroll
    for (int c = 0; c < N; ++c) {
      const T inverse = reciprocal_norm(norms[c]);
#pragma unroll
      for (int i = 0; i < N; ++i) x[c][i] *= inverse;
    }
    if (solid < columns) complete_thread(x, solid, rows, columns);
    T* basis = problem.basis + index * rows * columns;
    T* rotations = problem.rotations + index * columns * columns;
#pragma unroll
    for (int c = 0; c < N; ++c) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (c < columns && i < rows) basis[i * problem.basis_row + c * problem.basis_col] = x[c][i];
        if (c < columns && i < columns)
          rotations[i * problem.rotations_row + c * problem.rotations_col] = right[c][i] + poison;
      }
    }
  }
}

template <class T, int N, int G, bool Vectors>
__global__ void __launch_bounds__(kThreads) small_svd_group(const Problem<T> problem, std::int64_t first) {
  const int rows = problem.rows, columns = problem.columns, lane = threadIdx.x % G;
  const std::int64_t index = first + (std::int64_t(blockIdx.x) * kThreads + threadIdx.x) / G;
  // Groups past the end work on the last matrix and write nothing: an early return would leave the shuffles' mask.
  const bool live = index < problem.matrices.count;
  const T* matrix = problem.matrices[live ? index : problem.matrices.count - 1];

  T x[N], right[G];
  load_column(x, matrix, problem.matrices.row_stride, problem.matrices.col_stride, rows, columns, lane);
  Magnitude<T> magnitude;
#pragma unroll
  for (int i = 0; i < N; ++i) magnitude.add(x[i]);
  magnitude.template combine<G>();
  const T factor = magnitude.factor(), power = magnitude.power();
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] *= factor;
  const bool unsettled = svd_group<Vectors>(x, right, problem.threshold, lane);

  const T norm = std::sqrt(dot(x, x)), longest = __shfl_sync(kAllLanes, norm, 0, G);
  const bool writes = live && lane < columns;
  if (writes) problem.values[index * columns + lane] = norm * power;
  if (live && lane == 0 && problem.info) problem.info[index] = unsettled;
  if constexpr (Vectors) {
    const T poison = poison_of(longest);
    const int solid = -group_max<G>(dependent(norm, longest) ? -lane : -G);
    if (writes) {
      T* rotations = problem.rotations + index * columns * columns + lane * problem.rotations_col;
#pragma unroll
      for (int i = 0; i < G; ++i) {
        if (i < columns) rotations[i * problem.rotations_row] = right[i] + poison;
      }
    }
    const T inverse = reciprocal_norm(norm);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] *= inverse;
    if (__any_sync(kAllLanes, solid < columns)) complete_group<G>(x, solid, rows, columns, lane);
    if (writes) {
      T* basis = problem.basis + index * rows * columns + lane * problem.basis_col;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i < rows) basis[i * problem.basis_row] = x[i];
      }
    }
  }
}

// Calls write(row, col) for the entries of a matrix, the lanes of a warp along its rows or along its columns.
template <class Visit>
__device__ void visit_entries(int rows, int columns, bool along_rows, Visit&& visit) {
  const int outer_size = along_rows ? rows : columns, inner_size = along_rows ? columns : rows;
  for (int outer = 0; outer < outer_size; ++outer) {
    for (int inner = threadIdx.x % kWarp; inner < inner_size; inner += kWarp) {
      visit(along_rows ? outer : inner, along_rows ? inner : outer);
    }
  }
}

template <class T, bool Vectors>
__global__ void __launch_bounds__(kThreads, 8)
    small_svd_shared(const Problem<T> problem, int warps, std::int64_t first) {
  const int rows = problem.rows, columns = problem.columns, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const std::int64_t index = first + std::int64_t(blockIdx.x) * warps + warp;
  const bool live = index < problem.matrices.count;  // as in small_svd_group
  const SharedColumns<T> m(dynamic_shared<T>() + warp * SharedColumns<T>::entries(rows, columns, Vectors), rows,
                           columns, Vectors);
  const T* matrix = problem.matrices[live ? index : problem.matrices.count - 1];
  const std::int64_t row_stride = problem.matrices.row_stride, col_stride = problem.matrices.col_stride;
  Magnitude<T> magnitude;
  visit_entries(rows, columns, col_stride < row_stride, [&](int row, int col) {
    const T entry = matrix[row * row_stride + col * col_stride];
    m.x[col * m.x_stride + row] = entry;
    magnitude.add(entry);
  });
  magnitude.template combine<kWarp>();
  const T factor = magnitude.factor(), power = magnitude.power();
  visit_entries(rows, columns, col_stride < row_stride,
                [&](int row, int col) { m.x[col * m.x_stride + row] *= factor; });
  const bool unsettled = svd_shared<Vectors>(m, problem.threshold);

  int solid = columns;
  T longest = 0;
  for (int c = 0; c < columns; ++c) {
    T* column = m.x + c * m.x_stride;
    const T norm = std::sqrt(m.squares[c]);
    if (c == 0) longest = norm;
    if (dependent(norm, longest) && c < solid) solid = c;
    if (live && lane == 0) problem.values[index * columns + c] = norm * power;
    const T inverse = reciprocal_norm(norm);
    for (int i = lane; Vectors && i < rows; i += kWarp) column[i] *= inverse;
  }
  if (live && lane == 0 && problem.info) problem.info[index] = unsettled;
  if constexpr (Vectors) {
    complete_shared(m, solid);
    if (!live) return;
    const T poison = poison_of(longest);
    T* basis = problem.basis + index * rows * columns;
    visit_entries(rows, columns, problem.basis_col == 1, [&](int row, int col) {
      basis[row * problem.basis_row + col * problem.basis_col] = m.x[col * m.x_stride + row];
    });
    T* rotations = problem.rotations + index * columns * columns;
    visit_entries(columns, columns, problem.rotations_col == 1, [&](int row, int col) {
      rotations[row * problem.rotations_row + col * problem.rotations_col] =
          m.right[col * m.right_stride + row] + poison;
    });
  }
}

template <class T>
std::size_t bytes_per_warp(std::int64_t rows, int columns, bool vectors) {
  return static_cast<std::size_t>(SharedColumns<T>::entries(rows, columns, vectors)) * sizeof(T);
}

template <bool Vectors, class T>
void launch_thread(const Problem<T>& problem, void* stream) {
  for_each_grid(problem.matrices.count, kThreads, [&](std::int64_t first, std::int64_t count) {
    launch(small_svd_thread<T, Vectors>, (count + kThreads - 1) / kThreads, kThreads, 0, stream, problem, first);
  });
}

template <int N, int G, bool Vectors, class T>
void launch_group(const Problem<T>& problem, void* stream) {
  constexpr int per_block = kThreads / G;
  for_each_grid(problem.matrices.count, per_block, [&](std::int64_t first, std::int64_t count) {
    launch(small_svd_group<T, N, G, Vectors>, (count + per_block - 1) / per_block, kThreads, 0, stream, problem, first);
  });
}

template <bool Vectors, class T>
void launch_shared(const Problem<T>& problem, std::size_t limit, void* stream) {
  const std::size_t bytes = bytes_per_warp<T>(problem.rows, problem.columns, Vectors);
  int warps = kThreads / kWarp;
  while (warps > 1 && warps * bytes > limit) warps /= 2;
  for_each_grid(problem.matrices.count, warps, [&](std::int64_t first, std::int64_t count) {
    launch(small_svd_shared<T, Vectors>, (count + warps - 1) / warps, warps * kWarp, warps * bytes, stream, problem,
           warps, first);
  });
}

// The fewest lanes and the shortest columns that hold the matrix.
template <bool Vectors, class T>
void launch_for_size(const Problem<T>& problem, std::size_t limit, void* stream) {
  const int rows = problem.rows, columns = problem.columns;
  if (rows <= kThreadOrder || columns == 0) return launch_thread<Vectors>(problem, stream);
  if (rows <= 8) return launch_group<8, 8, Vectors>(problem, stream);
  if (rows <= 16 && columns <= 8) return launch_group<16, 8, Vectors>(problem, stream);
  if (rows <= 16) return launch_group<16, 16, Vectors>(problem, stream);
  if (rows <= 32 && columns > 16) return launch_group<32, 32, Vectors>(problem, stream);
  if (rows <= 32 && columns > 8) return launch_group<32, 16, Vectors>(problem, stream);
  launch_shared<Vectors>(problem, limit, stream);
}

}  // namespace

std::int64_t small_svd_cuda_max_length(DType dtype, std::int64_t rank, int device) {
  if (rank > kWarp) return 0;
  const std::size_t size = dtype == DType::f64 ? 8 : 4, limit = shared_bytes_limit(device) / size;
  const auto fits = [&](std::int64_t length) {
    return static_cast<std::size_t>(SharedColumns<double>::entries(length, static_cast<int>(rank), true)) <= limit;
  };
  if (rank == 0) return std::numeric_limits<std::int32_t>::max();
  std::int64_t length = kWarp;
  while (fits(length + 1)) ++length;
  return length;
}

void small_svd_cuda(const TensorView& M, const TensorView& values, const TensorView* left, const TensorView* right,
                    const TensorView* info, void* stream) {
  check_small_svd(M, values, left, right, info, kKernelDevice);
  const bool wide = M.size(-2) < M.size(-1);
  const std::int64_t columns = std::min(M.size(-2), M.size(-1)), rows = std::max(M.size(-2), M.size(-1));
  CHECK(columns <= kWarp, "small_svd: M: expected at most ", kWarp, " rows or columns on the shorter side, got ",
        columns);
  const std::int64_t longest = small_svd_cuda_max_length(M.dtype, columns, M.device_id);
  CHECK(rows <= longest, "small_svd: M: expected at most ", longest, " rows or columns on the longer side (shared ",
        "memory of the device), got ", rows);
  DeviceGuard guard(M.device_id);
  dispatch_float(M.dtype, "small_svd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    TensorView tall = M;
    if (wide) {
      std::swap(tall.shape[M.ndim - 2], tall.shape[M.ndim - 1]);
      std::swap(tall.stride[M.ndim - 2], tall.stride[M.ndim - 1]);
    }
    const TensorView *basis = wide ? right : left, *rotations = wide ? left : right;
    const int rank = static_cast<int>(columns), length = static_cast<int>(rows);
    const Problem<T> problem{MatrixBatch<T>(tall),
                             values.ptr<T>(),
                             basis ? basis->ptr<T>() : nullptr,
                             rotations ? rotations->ptr<T>() : nullptr,
                             info ? info->ptr<std::int32_t>() : nullptr,
                             length,
                             rank,
                             wide ? 1 : rank,
                             wide ? length : 1,
                             wide ? rank : 1,
                             wide ? 1 : rank,
                             svd_threshold<T>(rows)};
    if (problem.matrices.count == 0) return;
    const std::size_t limit = shared_bytes_limit(M.device_id);
    basis ? launch_for_size<true>(problem, limit, stream) : launch_for_size<false>(problem, limit, stream);
  });
}

}  // namespace subspan
