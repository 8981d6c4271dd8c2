// Triangular solve with many right-hand sides, and the inverse of a factored matrix, in the two forms of cholesky.h.
#pragma once
#include "core/small_matrix/cholesky.h"

namespace subspan {

// Solves L Y = X in place for the panels of X (rows are equations). `first_row(column)` is a row below which panel
// starting at `column` is known to be zero; it must be a multiple of kTileRows. Panels are dealt to the team.
template <class T, class FirstRow>
void solve_lower(const Factor<T>& factor, const Panels<T>& x, index_t columns, FirstRow&& first_row,
                 Team team = Team()) {
  const Panels<T>& lower = factor.lower;
  index_t turn = 0;
  for (index_t column = 0; column < columns; column += x.width, ++turn) {
    if (turn % team.size() != team.rank()) continue;
    const index_t start = first_row(column);
    const index_t vectors = (std::min(x.width, columns - column) + kLanes<T> - 1) / kLanes<T>;
    for (index_t group = start / kTileRows; group < factor.groups(); ++group) {
      const index_t row = group * kTileRows;
      with_vectors<T>(vectors, [&](auto count) {
        Vec<T> sums[kTileRows][count.value];
        multiply_tile<count.value>(lower.at(start, row), lower.width, x.at(start, column), x.width, row - start, sums);
        const T* entries = x.at(row, column);
#pragma GCC unroll 8
        for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 3
          for (int v = 0; v < count.value; ++v) sums[r][v] = load(entries + r * x.width + v * kLanes<T>) - sums[r][v];
        }
        solve_tile(factor.triangle(group), factor.reciprocal(group), sums);
        detail::store_tile(x, row, column, sums);
      });
    }
  }
}

namespace detail {

// Completes a symmetric matrix in panels of which the tiles with row <= last column of the panel are present.
template <class T>
void mirror(const Panels<T>& matrix, index_t size, Team team) {
  constexpr index_t lanes = kLanes<T>;
  index_t turn = 0;
  for (index_t column = 0; column < size; column += lanes, ++turn) {
    if (turn % team.size() != team.rank()) continue;
    for (index_t row = column + lanes; row < size; row += lanes) {
      Vec<T> square[lanes];
      for (index_t i = 0; i < lanes; ++i)
        square[i] = column + i < matrix.depth ? load(matrix.at(column + i, row)) : Vec<T>{};
      transpose_square<T>(square);
      for (index_t i = 0; i < std::min(lanes, matrix.depth - row); ++i) store(matrix.at(row + i, column), square[i]);
    }
  }
}

}  // namespace detail

// The upper triangle of (L L^T)^{-1}, and what shares its tiles, into panels of depth factor.lower.depth. With Y =
// L^{-1} it is Y^T Y, and Y is what solve_lower makes of the identity; `work` holds Y. Both are lower triangular, which
// saves two thirds of the products.
template <class T>
void inverse_upper(const Factor<T>& factor, const Panels<T>& work, const Panels<T>& result, Team team = Team()) {
  const index_t size = factor.size;
  const index_t depth = work.depth;
  index_t turn = 0;
  for (index_t column = 0; column < size; column += work.width, ++turn) {
    if (turn % team.size() != team.rank()) continue;
    T* panel = work.at(0, column);
    std::fill(panel + column * work.width, panel + depth * work.width, T(0));
    for (index_t c = column; c < std::min(column + work.width, depth); ++c) *work.at(c, c) = T(1);
  }
  solve_lower(factor, work, size, [](index_t column) { return column; }, team);
  team.barrier();
  turn = 0;
  for (index_t column = 0; column < size; column += work.width) {
    const index_t end = std::min(size, column + work.width);
    for (index_t row = 0; row < end; row += kTileRows, ++turn) {
      if (turn % team.size() != team.rank()) continue;
      const index_t skipped = row > column ? (row - column) / kLanes<T> * kLanes<T> : 0;
      const index_t first = column + skipped;
      // Rows of Y above max(panel of row, panel of column) are zero in one of the operands, and not stored there.
      const index_t start = std::max(row / work.width * work.width, column);
      with_vectors<T>((end - first + kLanes<T> - 1) / kLanes<T>, [&](auto count) {
        Vec<T> sums[kTileRows][count.value];
        multiply_tile<count.value>(work.at(start, row), work.width, work.at(start, first), work.width, size - start,
                                   sums);
        detail::store_tile(result, row, first, sums);
      });
    }
  }
  team.barrier();
}

// As above, full and symmetric.
template <class T>
void inverse(const Factor<T>& factor, const Panels<T>& work, const Panels<T>& result, Team team = Team()) {
  inverse_upper(factor, work, result, team);
  detail::mirror(result, factor.size, team);
  team.barrier();
}

// The interleaved form: a holds L as cholesky_interleaved leaves it, and the full symmetric inverse afterwards.
template <class T>
void inverse_interleaved(Vec<T>* a, const Vec<T>* reciprocals, index_t size) {
  // Y = L^{-1}, in place, row by row: Y[i][j] = -(sum_{j <= k < i} L[i][k] Y[k][j]) / L[i][i]. Row i of L is consumed
  // from the left, so it is copied to the upper triangle first: column i above the diagonal is free.
  for (index_t i = 0; i < size; ++i) {
    for (index_t k = 0; k < i; ++k) a[k * size + i] = a[i * size + k];
    for (index_t j = 0; j < i; ++j) {
      Vec<T> sum{};
      for (index_t k = j; k < i; ++k) sum += a[k * size + i] * a[k * size + j];
      a[i * size + j] = -sum * reciprocals[i];
    }
    a[i * size + i] = reciprocals[i];
  }
  for (index_t i = 0; i < size; ++i) {
    for (index_t j = 0; j <= i; ++j) {
      Vec<T> sum{};
      for (index_t k = i; k < size; ++k) sum += a[k * size + i] * a[k * size + j];
      a[j * size + i] = sum;  // row i of Y is needed for later columns only below the diagonal
    }
  }
  for (index_t i = 0; i < size; ++i) {
    for (index_t j = 0; j < i; ++j) a[i * size + j] = a[j * size + i];
  }
}

}  // namespace subspan
