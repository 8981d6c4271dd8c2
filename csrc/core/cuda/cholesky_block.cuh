// One symmetric positive definite matrix per thread block, in shared memory: blocked by kPanel columns, the same
// elimination as cholesky_group.cuh with a panel of columns in place of one.
#pragma once
#include "core/cuda/cholesky_group.cuh"

namespace subspan {

constexpr int kPanel = 16;
constexpr int kTile = 4;
constexpr int kBlockThreads = 128;

// Shared memory of one matrix of order n.
template <class T>
struct BlockMatrix {
  // The matrix, column-major. A column is padded to whole tiles, so that a tile may read past n, and by one more tile,
  // so that walking along a row visits different banks.
  T* a;
  T* pivot;   // n recorded pivots
  T* factor;  // kPanel x kPanel, column-major: Cholesky factor of the diagonal block, reciprocals on its diagonal
  int n, column;

  __host__ __device__ static constexpr int column_length(int n) { return (n + kTile - 1) / kTile * kTile + kTile; }
  __host__ __device__ static constexpr int tile_aligned(int n) { return (n + kTile - 1) / kTile * kTile; }
  static constexpr std::size_t bytes(int n) {
    return (std::size_t(n) * column_length(n) + tile_aligned(n) + kPanel * kPanel) * sizeof(T);
  }

  __device__ BlockMatrix(T* shared, int n)
      : a(shared), pivot(a + n * column_length(n)), factor(pivot + tile_aligned(n)), n(n), column(column_length(n)) {}
  __device__ T& at(int row, int col) const { return a[col * column + row]; }
};

// Largest order whose matrix fits `shared_bytes`.
template <class T>
int largest_block_order(std::size_t shared_bytes) {
  int n = 0;
  while (BlockMatrix<T>::bytes(n + 1) <= shared_bytes) ++n;
  return n;
}

// Reads 16 bytes at a time: where every lane of a warp reads shared memory, the number of reads is the cost.
template <int Count, class T>
__device__ void load_aligned(T (&to)[Count], const T* from) {
  struct alignas(16) Pack {
    T entry[16 / sizeof(T)];
  };
  constexpr int width = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < Count; i += width) {
    const Pack pack = *reinterpret_cast<const Pack*>(from + i);
#pragma unroll
    for (int e = 0; e < width; ++e) to[i + e] = pack.entry[e];
  }
}

// Reads the lower triangle, lanes along the shorter stride. With `Full` the upper triangle is filled by symmetry.
template <bool Full, class T>
__device__ void load_block(const BlockMatrix<T>& m, const T* matrix, std::int64_t row_stride, std::int64_t col_stride) {
  const bool by_rows = col_stride <= row_stride;
  for (int outer = threadIdx.x / kWarp; outer < m.n; outer += kBlockThreads / kWarp) {
    for (int inner = threadIdx.x % kWarp; inner < m.n; inner += kWarp) {
      const int row = by_rows ? outer : inner, col = by_rows ? inner : outer;
      if (col > row) continue;
      const T entry = matrix[row * row_stride + col * col_stride];
      m.at(row, col) = entry;
      if (Full) m.at(col, row) = entry;
    }
  }
}

// x <- x L^-T, L the factor of the current panel.
template <class T>
__device__ void solve_forward(T (&x)[kPanel], const T* factor) {
#pragma unroll
  for (int k = 0; k < kPanel; ++k) {
    T column[kPanel];
    load_aligned(column, factor + k * kPanel);
    x[k] *= column[k];
#pragma unroll
    for (int q = k + 1; q < kPanel; ++q) x[q] -= x[k] * column[q];
  }
}

// x <- x L^-1
template <class T>
__device__ void solve_backward(T (&x)[kPanel], const T* factor) {
#pragma unroll
  for (int k = kPanel - 1; k >= 0; --k) {
    T column[kPanel];
    load_aligned(column, factor + k * kPanel);
#pragma unroll
    for (int q = k + 1; q < kPanel; ++q) x[k] -= x[q] * column[q];
    x[k] *= column[k];
  }
}

// The panel of columns [begin, begin + width).
struct Panel {
  int begin, width;
  __device__ bool contains(int row) const { return row >= begin && row < begin + width; }
};

// Called by the first warp, one row per lane; both halves compute, the first writes. Past the width of a short last
// panel the factor is the identity. With `Inverse` the diagonal block becomes minus its inverse.
template <bool Inverse, class T>
__device__ void factor_diagonal_block(const BlockMatrix<T>& m, Panel panel, bool implicit_identity) {
  const int lane = threadIdx.x % kPanel;
  const bool writes = threadIdx.x < kPanel;
  T* block = &m.at(panel.begin, panel.begin);
  T d[1][kPanel], pivot[1];
  load_group<Inverse>(d, block, 1, m.column, panel.width, lane);
  factor_group<Inverse>(d, pivot, panel.width, implicit_identity, lane, [&](int j, T root, const T(&l)[1]) {
    if (writes) m.factor[j * kPanel + lane] = lane == j ? root : l[0];
  });
  __syncwarp();  // the other half may not have read the block yet
  if (!writes) return;
  for (int k = panel.width; k < kPanel; ++k) m.factor[k * kPanel + lane] = k == lane;
  if (lane < panel.width) m.pivot[panel.begin + lane] = pivot[0];
  if constexpr (Inverse) {
    visit_swept(d, panel.width, lane, [&](int row, int col, T entry) { block[col * m.column + row] = entry; });
  }
}

// Applies solve to every row of the panel's columns from first_row on, outside the panel's own rows; a thread per row.
// With `Full` the mirrored entries are written too.
template <bool Full, class T, class Solve>
__device__ void solve_panel(const BlockMatrix<T>& m, Panel panel, int first_row, Solve&& solve) {
  for (int row = first_row + threadIdx.x; row < m.n; row += kBlockThreads) {
    if (panel.contains(row)) continue;
    T x[kPanel];
#pragma unroll
    for (int k = 0; k < kPanel; ++k) x[k] = k < panel.width ? m.at(row, panel.begin + k) : T(0);
    solve(x, m.factor);
#pragma unroll
    for (int k = 0; k < kPanel; ++k) {
      if (k >= panel.width) continue;
      m.at(row, panel.begin + k) = x[k];
      if (Full) m.at(panel.begin + k, row) = x[k];
    }
  }
}

// A_ik -= X_i X_k^T for i >= k >= first_row outside the panel, in 4 x 4 register tiles; with `Full` A_ki as well.
template <bool Full, class T>
__device__ void subtract_outer_product(const BlockMatrix<T>& m, Panel panel, int first_row) {
  const int tiles = (m.n - first_row + kTile - 1) / kTile;
  for (int index = threadIdx.x; index < tiles * (tiles + 1) / 2; index += kBlockThreads) {
    // index = i (i + 1) / 2 + k; the square root may be off by one.
    int tile_i = static_cast<int>((sqrtf(8.0f * index + 1.0f) - 1.0f) / 2);
    tile_i += (tile_i + 1) * (tile_i + 2) / 2 <= index;
    tile_i -= tile_i * (tile_i + 1) / 2 > index;
    const int row = first_row + kTile * tile_i;
    const int col = first_row + kTile * (index - tile_i * (tile_i + 1) / 2);
    if (panel.contains(row) || panel.contains(col)) continue;

    T sum[kTile][kTile] = {};
#pragma unroll 4
    for (int k = 0; k < panel.width; ++k) {
      T x_i[kTile], x_k[kTile];
      load_aligned(x_i, &m.at(row, panel.begin + k));
      load_aligned(x_k, &m.at(col, panel.begin + k));
#pragma unroll
      for (int u = 0; u < kTile; ++u) {
#pragma unroll
        for (int v = 0; v < kTile; ++v) sum[u][v] += x_i[u] * x_k[v];
      }
    }
#pragma unroll
    for (int u = 0; u < kTile; ++u) {
#pragma unroll
      for (int v = 0; v < kTile; ++v) {
        if (row + u >= m.n || row + u < col + v) continue;
        const T updated = m.at(row + u, col + v) - sum[u][v];
        m.at(row + u, col + v) = updated;
        if (Full) m.at(col + v, row + u) = updated;
      }
    }
  }
}

// Eliminates all pivots and records them. Inverse = false needs the lower triangle and leaves nothing of use.
// Inverse = true needs the full matrix and leaves minus its inverse, by sweeping panels J = L L^T as factor_group
// sweeps columns: X_i = A_iJ L^-T for every other row i, A_ik -= X_i X_k^T, A_iJ = X_i L^-1, A_JJ = -(L L^T)^-1.
template <bool Inverse, class T>
__device__ void factor_block(const BlockMatrix<T>& m, bool implicit_identity) {
  for (int begin = 0; begin < m.n; begin += kPanel) {
    const Panel panel{begin, m.n - begin < kPanel ? m.n - begin : kPanel};
    const int first_row = Inverse ? 0 : begin + panel.width;
    if (in_first_warp()) factor_diagonal_block<Inverse>(m, panel, implicit_identity);
    __syncthreads();
    solve_panel<false>(m, panel, first_row, [](auto& x, const T* factor) { solve_forward(x, factor); });
    __syncthreads();
    subtract_outer_product<Inverse>(m, panel, first_row);
    __syncthreads();
    if (Inverse) {
      solve_panel<true>(m, panel, first_row, [](auto& x, const T* factor) { solve_backward(x, factor); });
      __syncthreads();
    }
  }
}

}  // namespace subspan
