// Packed triangles (core/triangle.h) on the device: positions, and their way into the factorisations.
#pragma once
#include "core/cuda/cholesky_block.cuh"
#include "core/triangle.h"

namespace subspan {

// Larger orders would overflow the int in which triangles are counted.
constexpr int kMaxTriangleOrder = 32768;

// Where row `row` would have its column 0: entry (a, b) is number row_start(a, d) + b.
__device__ inline int row_start(int row, int order) { return row * (2 * order - row - 1) / 2; }

struct TrianglePosition {
  int row, col;
};

__device__ inline TrianglePosition triangle_position(int entry, int order) {
  // Counted from the end, row r of the triangle has r + 1 entries: entry r (r + 1) / 2 is its first. At the last entry
  // of a row the root may round up to that of the next, from r = 4607 on; it is never too small for any order allowed.
  const int from_end = order * (order + 1) / 2 - 1 - entry;
  int row = static_cast<int>((sqrtf(8.0f * from_end + 1.0f) - 1.0f) / 2);
  row -= row * (row + 1) / 2 > from_end;
  return {order - 1 - row, order - 1 - (from_end - row * (row + 1) / 2)};
}

// As load_group, of scale times the matrix whose triangle is given. Lanes read neighbouring addresses.
template <bool Full, class T, int N, int R>
__device__ void load_group_packed(T (&a)[R][N], const T* triangle, T scale, int n, int lane) {
  constexpr int G = N / R;
#pragma unroll
  for (int k = 0; k < N; ++k) {
#pragma unroll
    for (int r = 0; r < R; ++r) a[r][k] = 0;
  }
  int start = 0;  // row_start(k, n)
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k >= n) continue;  // a test of the run-time n, for the reason given at load_group
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!Full && k >= r * G + G) continue;
      const int row = r * G + lane;
      if (row < n) {
        if (k <= row) {
          a[r][k] = scale * triangle[start + row];
        } else if (Full) {
          a[r][k] = scale * triangle[row_start(row, n) + k];
        }
      }
    }
    start += n - 1 - k;
  }
}

// As load_block, of scale times the matrix whose triangle is given: a column of the lower triangle per warp.
template <bool Full, class T>
__device__ void load_block_packed(const BlockMatrix<T>& m, const T* triangle, T scale) {
  for (int col = threadIdx.x / kWarp; col < m.n; col += kBlockThreads / kWarp) {
    const T* column = triangle + row_start(col, m.n);
    for (int row = col + threadIdx.x % kWarp; row < m.n; row += kWarp) {
      const T entry = scale * column[row];
      m.at(row, col) = entry;
      if (Full) m.at(col, row) = entry;
    }
  }
}

}  // namespace subspan
