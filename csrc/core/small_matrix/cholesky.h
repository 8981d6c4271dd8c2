// Cholesky factorisation A = L L^T and log determinant, in two forms of one algorithm: blocked on the micro-kernel, one
// matrix for a team of threads; and interleaved, one matrix per SIMD lane.
#pragma once
#include "core/gemm.h"
#include "core/small_matrix/pivot.h"
#include "core/workspace.h"

namespace subspan {

// A lower triangular factor in panels: at(k, i) holds L[i][k] for i > k, beside the diagonal blocks of kTileRows
// columns as small row-major triangles and the reciprocals of the diagonal.
template <class T>
struct Factor {
  Panels<T> lower;
  T* triangles = nullptr;    // [group][row][column]
  T* reciprocals = nullptr;  // [group][row]
  index_t size = 0;

  static constexpr int kBlock = kTileRows * kTileRows;
  index_t groups() const { return (size + kTileRows - 1) / kTileRows; }
  T* triangle(index_t group) const { return triangles + group * kBlock; }
  T* reciprocal(index_t group) const { return reciprocals + group * kTileRows; }

  static Factor take(index_t size, Workspace& workspace) {
    Factor factor;
    factor.size = size;
    const index_t depth = round_up(size, kTileRows);
    factor.lower = {workspace.take<T>(panel_elements<T>(depth, size)), depth, panel_width<T>(size)};
    factor.triangles = workspace.take<T>(factor.groups() * kBlock);
    factor.reciprocals = workspace.take<T>(factor.groups() * kTileRows);
    return factor;
  }
};

// Forward substitution on one tile: rows of `sums` are right-hand sides of the group's triangle.
template <class T, int Vectors>
[[gnu::always_inline]] inline void solve_tile(const T* triangle, const T* reciprocal,
                                              Vec<T> (&sums)[kTileRows][Vectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) sums[r][v] *= broadcast(reciprocal[r]);
#pragma GCC unroll 8
    for (int q = r + 1; q < kTileRows; ++q) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) sums[q][v] -= broadcast(triangle[q * kTileRows + r]) * sums[r][v];
    }
  }
}

namespace detail {

// Factors the diagonal block of a group in place; block(q, r), q >= r, lies at block[q * kTileRows + r].
template <Pivot kind, class T>
void factor_block(T* block, T* reciprocal, index_t first, index_t size, PivotLog<double, double, kind>& log) {
  for (int r = 0; r < kTileRows; ++r) {
    // Beyond the last column the matrix is continued with the identity.
    const T diagonal = first + r < size ? static_cast<T>(log.factor_entry(block[r * kTileRows + r], first + r)) : T(1);
    const T inverse = T(1) / diagonal;
    reciprocal[r] = inverse;
    block[r * kTileRows + r] = diagonal;
    for (int q = r + 1; q < kTileRows; ++q) block[q * kTileRows + r] *= inverse;
    for (int q = r + 1; q < kTileRows; ++q) {
      for (int p = r + 1; p <= q; ++p) block[q * kTileRows + p] -= block[q * kTileRows + r] * block[p * kTileRows + r];
    }
  }
}

// One tile of L: the kTileRows columns of `group`, rows from `row` on. factor.lower holds A there.
template <class T, int Vectors>
[[gnu::always_inline]] inline void subtract_product(const Factor<T>& factor, index_t group, index_t row,
                                                    Vec<T> (&sums)[kTileRows][Vectors]) {
  const Panels<T>& lower = factor.lower;
  const index_t first = group * kTileRows;
  multiply_tile<Vectors>(lower.column(first), lower.width, lower.column(row), lower.width, first, sums);
  const T* entries = lower.at(first, row);
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) sums[r][v] = load(entries + r * lower.width + v * kLanes<T>) - sums[r][v];
  }
}

template <class T, int Vectors>
[[gnu::always_inline]] inline void store_tile(const Panels<T>& to, index_t row, index_t column,
                                              const Vec<T> (&sums)[kTileRows][Vectors]) {
  T* target = to.at(row, column);
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) store(target + r * to.width + v * kLanes<T>, sums[r][v]);
  }
}

}  // namespace detail

// The tile of L below the diagonal block: columns of `group`, rows of the panel that starts at `row`.
template <class T>
void factor_tile(const Factor<T>& factor, index_t group, index_t row) {
  const index_t rows = std::min(factor.lower.width, factor.size - row);
  with_vectors<T>((rows + kLanes<T> - 1) / kLanes<T>, [&](auto vectors) {
    Vec<T> sums[kTileRows][vectors.value];
    detail::subtract_product(factor, group, row, sums);
    solve_tile(factor.triangle(group), factor.reciprocal(group), sums);
    detail::store_tile(factor.lower, group * kTileRows, row, sums);
  });
}

// The tile that holds the diagonal block of `group`, whose triangle it factors.
template <Pivot kind, class T>
void factor_diagonal_tile(const Factor<T>& factor, index_t group, PivotLog<double, double, kind>& log) {
  const Panels<T>& lower = factor.lower;
  const index_t first = group * kTileRows;
  // Vectors of the panel that lie wholly above the diagonal are not needed.
  const index_t start = first / kLanes<T> * kLanes<T>;
  const index_t stop = std::min((first / lower.width + 1) * lower.width, round_up(factor.size, kLanes<T>));
  with_vectors<T>((stop - start) / kLanes<T>, [&](auto vectors) {
    Vec<T> sums[kTileRows][vectors.value];
    detail::subtract_product(factor, group, start, sums);
    detail::store_tile(lower, first, start, sums);
    T* block = factor.triangle(group);
    for (int q = 0; q < kTileRows; ++q) {
      for (int r = 0; r < kTileRows; ++r) block[q * kTileRows + r] = *lower.at(first + r, first + q);
    }
    detail::factor_block<kind>(block, factor.reciprocal(group), first, factor.size, log);
    solve_tile(block, factor.reciprocal(group), sums);
    detail::store_tile(lower, first, start, sums);
  });
}

// Factors in place: on entry factor.lower.at(k, i) = A[i][k] for i >= k (other entries are ignored), its depth a
// multiple of kTileRows. Left-looking: each tile of L is one product with the finished columns, then a triangular solve
// while it is still in registers. The team's first member owns the panel on the diagonal and the log, all share the
// panels below it: two barriers for every panel.
template <Pivot kind, class T>
void cholesky(const Factor<T>& factor, PivotLog<double, double, kind>& log, Team team = Team()) {
  const index_t width = factor.lower.width;
  for (index_t column = 0; column < factor.size; column += width) {
    const index_t first_group = column / kTileRows;
    const index_t last_group = std::min(factor.groups(), (column + width) / kTileRows);
    if (team.rank() == 0) {
      for (index_t group = first_group; group < last_group; ++group) factor_diagonal_tile(factor, group, log);
    }
    team.barrier();
    index_t turn = 0;
    for (index_t row = column + width; row < factor.size; row += width, ++turn) {
      if (turn % team.size() != team.rank()) continue;
      for (index_t group = first_group; group < last_group; ++group) factor_tile(factor, group, row);
    }
    team.barrier();
  }
}

namespace detail {

// Column j of L for `Rows` rows from row i on: independent sums that share the loads of the pivot row.
template <int Rows, class T>
[[gnu::always_inline]] inline void column_interleaved(Vec<T>* a, index_t size, index_t i, index_t j,
                                                      Vec<T> reciprocal) {
  const Vec<T>* pivot_row = a + j * size;
  Vec<T> sums[Rows];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) sums[r] = a[(i + r) * size + j];
  for (index_t k = 0; k < j; ++k) {
    const Vec<T> factor = pivot_row[k];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sums[r] -= a[(i + r) * size + k] * factor;
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) a[(i + r) * size + j] = sums[r] * reciprocal;
}

}  // namespace detail

// The interleaved form: a[i * size + k] holds entry (i, k), i >= k, of kLanes matrices, and L afterwards.
// reciprocals[k] = 1 / L[k][k].
template <Pivot kind, class T>
void cholesky_interleaved(Vec<T>* a, Vec<T>* reciprocals, index_t size, PivotLog<T, Vec<T>, kind>& log) {
  for (index_t j = 0; j < size; ++j) {
    const Vec<T>* pivot_row = a + j * size;
    Vec<T> even = pivot_row[j], odd{};  // two sums, since one would wait for itself
    index_t k = 0;
    for (; k + 2 <= j; k += 2) {
      even -= pivot_row[k] * pivot_row[k];
      odd -= pivot_row[k + 1] * pivot_row[k + 1];
    }
    if (k < j) even -= pivot_row[k] * pivot_row[k];
    const Vec<T> diagonal = log.factor_entry(even + odd, j);
    const Vec<T> reciprocal = T(1) / diagonal;
    a[j * size + j] = diagonal;
    reciprocals[j] = reciprocal;
    index_t i = j + 1;
    for (; i + 8 <= size; i += 8) detail::column_interleaved<8, T>(a, size, i, j, reciprocal);
    for (; i + 4 <= size; i += 4) detail::column_interleaved<4, T>(a, size, i, j, reciprocal);
    for (; i < size; ++i) detail::column_interleaved<1, T>(a, size, i, j, reciprocal);
  }
}

}  // namespace subspan
