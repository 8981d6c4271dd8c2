// Small symmetric positive definite matrices in registers: G lanes of a warp share one matrix of order n <= N.
// Lane `lane` of a group holds rows lane, lane + G, ..., R = N / G of them, so a warp works on 32 / G matrices at once.
#pragma once
#include "core/cuda/log_product.cuh"

namespace subspan {

// Reads the lower triangle of `matrix`. With `Full` the upper one is filled by symmetry, otherwise it is left zero.
template <bool Full, class T, int N, int R>
__device__ void load_group(T (&a)[R][N], const T* matrix, std::int64_t row_stride, std::int64_t col_stride, int n,
                           int lane) {
  constexpr int G = N / R;
  std::int64_t left[R], below[R];  // offsets of (row, k) for k <= row, and of its mirror image (k, row)
#pragma unroll
  for (int r = 0; r < R; ++r) {
    left[r] = (r * G + lane) * row_stride;
    below[r] = (r * G + lane) * col_stride;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
#pragma unroll
    for (int r = 0; r < R; ++r) a[r][k] = 0;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k >= n) break;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!Full && k >= r * G + G) continue;  // right of every row in this block: these registers do not exist
      const int row = r * G + lane;
      if (row < n) {
        if (k <= row) {
          a[r][k] = matrix[left[r]];
        } else if (Full) {
          a[r][k] = matrix[below[r]];
        }
      }
      left[r] += col_stride;
      below[r] += row_stride;
    }
  }
}

// Writes scale * a as a packed matrix; a is symmetric, so row k is written from column k, lanes side by side.
template <class T, int N, int R>
__device__ void store_group(const T (&a)[R][N], T* matrix, int n, int lane, T scale) {
  constexpr int G = N / R;
  T* entry = matrix + lane;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k >= n) break;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r * G + lane < n) entry[r * G] = scale * a[r][k];
    }
    entry += n;
  }
}

// Eliminates the first n pivots and records them (see PivotSummary for what a recorded pivot is).
//   Inverse = false: a becomes the strictly lower part of the Cholesky factor.
//   Inverse = true:  a becomes minus the inverse, by the sweep operator (Goodnight 1979). Sweeping pivot j is the
//   Cholesky
//     update of the trailing rows, done to *all* rows and columns: with column l = a[:, j] / sqrt(p) and l[j] = -1 /
//     sqrt(p), clear row and column j and subtract l l^T. Products commute, so a stays symmetric to the last bit.
// Calls visit(j, root, l) with root = 1 / sqrt(p) and the lane's entries l of column j, which below row j are those of
// the Cholesky factor.
template <bool Inverse, class T, int N, int R, class Visit>
__device__ void factor_group(T (&a)[R][N], T (&pivot)[R], int n, bool implicit_identity, int lane, Visit&& visit) {
  constexpr int G = N / R, kChunk = 8;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    // The tests against the run-time n also keep the compiler from interleaving columns, or the shuffles of a whole row
    // of them, which spills kilobytes.
    if (j < n) {
      const int first = Inverse ? 0 : j + 1;  // column of the update
      const T own = __shfl_sync(kAllLanes, a[j / G][j], j % G, G);
      const T root = inverse_root_of_pivot(own, implicit_identity);
      const bool holds_pivot = lane == j % G;
      if (holds_pivot) pivot[j / G] = own;

      T l[R] = {};
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (!Inverse && r * G + G - 1 < j) continue;
        l[r] = a[r][j] * root;
        a[r][j] = Inverse ? T(0) : l[r];
      }
      visit(j, root, l);
      if (Inverse && holds_pivot) {
        l[j / G] = -root;
#pragma unroll
        for (int k = 0; k < N; ++k) a[j / G][k] = 0;
      }
#pragma unroll
      for (int chunk = 0; chunk < N; chunk += kChunk) {
        if (chunk + kChunk <= first || chunk >= n) continue;
#pragma unroll
        for (int k = chunk; k < chunk + kChunk; ++k) {
          if (k < first) continue;
          const T l_k = __shfl_sync(kAllLanes, l[k / G], k % G, G);
#pragma unroll
          for (int r = 0; r < R; ++r) {
            if (Inverse || r * G + G - 1 >= k) a[r][k] -= l[r] * l_k;
          }
        }
      }
    }
  }
}

template <bool Inverse, class T, int N, int R>
__device__ void factor_group(T (&a)[R][N], T (&pivot)[R], int n, bool implicit_identity, int lane) {
  factor_group<Inverse>(a, pivot, n, implicit_identity, lane, [](int, T, const T(&)[R]) {});
}

}  // namespace subspan
