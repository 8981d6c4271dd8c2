// Products of matrices side by side in SIMD lanes. Every entry is a vector, so that any strides are as good as any
// other: a transposed operand is a view.
#pragma once
#include "core/simd.h"

namespace subspan {

// Entry (i, j) of every lane's matrix at data[i * row + j * column].
template <class T>
struct LaneMatrix {
  Vec<T>* data;
  index_t row, column;
  Vec<T>& operator()(index_t i, index_t j) const { return data[i * row + j * column]; }
  LaneMatrix transposed() const { return {data, column, row}; }
  LaneMatrix from(index_t i, index_t j) const { return {data + i * row + j * column, row, column}; }
};

namespace detail {

#if defined(__AVX512F__)
constexpr int kLaneTile = 4;  // squares of accumulators: 16 of 32 registers
#else
constexpr int kLaneTile = 2;
#endif

template <int Rows, int Columns, class T, class Finish>
[[gnu::always_inline]] inline void lane_tile(const LaneMatrix<T>& left, const LaneMatrix<T>& right, index_t row,
                                             index_t column, index_t depth, Finish&& finish) {
  Vec<T> sums[Rows][Columns];
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sums[i][j] = Vec<T>{};
  }
  const Vec<T>* l = &left(row, 0);
  const Vec<T>* r = &right(0, column);
  for (index_t k = 0; k < depth; ++k, l += left.column, r += right.row) {
    Vec<T> entries[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) entries[j] = r[j * right.column];
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i) {
      const Vec<T> entry = l[i * left.row];
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) sums[i][j] += entry * entries[j];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) finish(row + i, column + j, sums[i][j]);
  }
}

}  // namespace detail

// finish(i, j, sum) for every entry of left (rows x depth) right (depth x columns).
template <class T, class Finish>
void multiply_interleaved(const LaneMatrix<T>& left, index_t rows, const LaneMatrix<T>& right, index_t columns,
                          index_t depth, Finish&& finish) {
  constexpr int tile = detail::kLaneTile;
  for (index_t column = 0; column < columns;) {
    const bool wide = column + tile <= columns;
    for (index_t row = 0; row < rows;) {
      const bool tall = row + tile <= rows;
      if (tall && wide) {
        detail::lane_tile<tile, tile>(left, right, row, column, depth, finish);
      } else if (wide) {
        detail::lane_tile<1, tile>(left, right, row, column, depth, finish);
      } else if (tall) {
        detail::lane_tile<tile, 1>(left, right, row, column, depth, finish);
      } else {
        detail::lane_tile<1, 1>(left, right, row, column, depth, finish);
      }
      row += tall ? tile : 1;
    }
    column += wide ? tile : 1;
  }
}

}  // namespace subspan
