// The plain product C = A B of row-major arrays, for ops that fuse something into its packing.
#pragma once
#include "core/pack.h"
#include "core/workspace.h"

namespace subspan {

// Stores or adds tiles into a packed row-major array; tiles are cut at its edges.
template <class T>
struct StoreRows {
  T* data;
  index_t step;
  index_t rows, columns;  // how many of the tiles' rows and columns exist
  bool add;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      if (row + i >= rows) break;
      T* target = data + (row + i) * step + column;
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v, target += kLanes<T>) {
        const index_t count = columns - column - v * kLanes<T>;
        if (count >= kLanes<T>) {
          store(target, add ? load(target) + sums[i][v] : sums[i][v]);
        } else {
          for (index_t lane = 0; lane < count; ++lane) target[lane] = (add ? target[lane] : T(0)) + sums[i][v][lane];
        }
      }
    }
  }
};

// C (rows x columns, packed) = A (rows x depth) B (depth x columns), one thread. Blocks of B stay in the second-level
// cache while strips of A pass by.
template <class T>
void multiply_rows(const Rows<T>& a, index_t rows, const Rows<T>& b, index_t columns, index_t depth, T* c,
                   Workspace& workspace) {
  constexpr index_t depth_block = 256;
  constexpr index_t column_block = kPanelWidth<T> * 16;
  constexpr index_t width = kPanelWidth<T>;
  const Panels<T> right{workspace.take<T>(depth_block * column_block), depth_block, width};
  const Panels<T> left{workspace.take<T>(depth_block * width), depth_block, width};
  for (index_t column = 0; column < columns; column += column_block) {
    const index_t column_count = std::min(column_block, columns - column);
    for (index_t k = 0; k < depth; k += depth_block) {
      const index_t block = std::min(depth_block, depth - k);
      pack_columns(b, k, block, column, column_count, right);
      for (index_t row = 0; row < rows; row += width) {
        const index_t row_count = std::min(width, rows - row);
        pack_rows(a, row, row_count, k, block, left);
        const StoreRows<T> finish{c + row * columns + column, columns, row_count, column_count, k > 0};
        multiply(left, row_count, right, column_count, block, Part::kAll, Team(), finish);
      }
    }
  }
}

}  // namespace subspan
