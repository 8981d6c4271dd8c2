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
    // This test of the run-time n keeps the addresses of all columns from being alive at once, which would spill.
    if (k >= n) continue;
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

// Eliminates the first n pivots and records them (see PivotSummary for what a recorded pivot is).
//   Inverse = false: a Cholesky factorisation; a is left without use.
//   Inverse = true: a becomes minus the inverse, by the sweep operator (Goodnight 1979). Sweeping pivot j is the update
//     of the trailing rows in a Cholesky step, done to *all* rows and columns: with l = a[:, j] / sqrt(p) and
//     l[j] = -1 / sqrt(p), clear row and column j and subtract l l^T. Products commute, so a stays symmetric to the
//     last bit.
// The pivot's column is always a[.][0]: each step moves the columns one place to the left as it updates them, which
// costs nothing and makes the steps one small loop, where indexing registers by j would unroll to tens of thousands of
// instructions. A swept column re-enters on the right.
// Calls visit(j, root, l) with root = 1 / sqrt(p) and the lane's entries l of column j, which below row j are those of
// the Cholesky factor.
template <bool Inverse, class T, int N, int R, class Visit>
__device__ void factor_group(T (&a)[R][N], T (&pivot)[R], int n, bool implicit_identity, int lane, Visit&& visit) {
  constexpr int G = N / R;
#pragma unroll
  for (int block = 0; block < R; ++block) {
#pragma unroll 1
    for (int owner = 0; owner < G && block * G + owner < n; ++owner) {  // pivot j = block * G + owner
      const T own = __shfl_sync(kAllLanes, a[block][0], owner, G);
      const T root = inverse_root_of_pivot(own, implicit_identity);
      if (lane == owner) pivot[block] = own;
      T l[R] = {};
#pragma unroll
      for (int r = Inverse ? 0 : block; r < R; ++r) l[r] = a[r][0] * root;
      visit(block * G + owner, root, l);
      if (Inverse && lane == owner) {
        l[block] = -root;
#pragma unroll
        for (int k = 1; k < N; ++k) a[block][k] = 0;
      }

      // Entry j + k of l is held by lane (owner + k) % G, in the row block after k / G others, or one later where the
      // sum has wrapped, which is so for the lanes before the owner.
      T offered[R];
#pragma unroll
      for (int x = 0; x < R; ++x) offered[x] = lane < owner ? l[(block + x + 1) % R] : l[(block + x) % R];
#pragma unroll
      for (int k = 1; k < N; ++k) {
        if (!Inverse && k >= (R - block) * G) continue;
        const T l_k = __shfl_sync(kAllLanes, offered[k / G], owner + k, G);
#pragma unroll
        for (int r = Inverse ? 0 : block; r < R; ++r) {
          if (Inverse || k < (r - block + 1) * G) a[r][k - 1] = a[r][k] - l[r] * l_k;
        }
      }
      if (Inverse) {
#pragma unroll
        for (int r = 0; r < R; ++r) a[r][N - 1] = l[r] * root;
      }
    }
  }
}

template <bool Inverse, class T, int N, int R>
__device__ void factor_group(T (&a)[R][N], T (&pivot)[R], int n, bool implicit_identity, int lane) {
  factor_group<Inverse>(a, pivot, n, implicit_identity, lane, [](int, T, const T(&)[R]) {});
}

// Calls write(row, col, entry) for the lane's entries of a swept matrix: n steps have brought column 0 to place N - n.
template <class T, int N, int R, class Write>
__device__ void visit_swept(const T (&a)[R][N], int n, int lane, Write&& write) {
  constexpr int G = N / R;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const int col = k - (N - n);
    if (col < 0) continue;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r * G + lane < n) write(r * G + lane, col, a[r][k]);
    }
  }
}

template <int N_, int G_>
struct GroupShape {
  static constexpr int N = N_, G = G_;
};

// Calls run(GroupShape<N, G>()) with the smallest group for matrices of order n; false if n is too large for any. The
// lanes per matrix are the fewest whose registers hold the matrix without spilling: a lane keeps N / G rows of N
// entries, only their lower half where no inverse is asked for.
template <class T, bool Inverse, class Run>
bool for_group_shape(std::int64_t n, Run&& run) {
  constexpr bool single = sizeof(T) == 4;
  if (n <= 8) return run(GroupShape<8, single ? 2 : 4>()), true;
  if (n <= 16) return run(GroupShape<16, single ? 4 : 8>()), true;
  if (n <= 32) return run(GroupShape<32, single ? 8 : 16>()), true;
  if constexpr (single) {
    if (n <= 64) return run(GroupShape<64, Inverse ? 32 : 16>()), true;
  }
  return false;
}

}  // namespace subspan
