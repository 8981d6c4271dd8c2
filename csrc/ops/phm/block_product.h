// A block of a product whose right operand is in panels and whose left operand lies in any layout.
#pragma once
#include "core/gemm.h"

namespace subspan {

// sums (rows x columns, rows `sums_step` apart) = or += left^T right. Row r of the product takes entries
// left[r * row_entry + k * depth_step]. Rows and columns are rounded up to whole tiles and vectors.
template <class T>
void multiply_block(const T* left, index_t row_entry, index_t depth_step, index_t rows, const Panels<T>& right,
                    index_t columns, index_t depth, bool add, T* sums, index_t sums_step) {
  for (index_t c = 0; c < columns; c += right.width) {
    const index_t vectors = std::min(right.width, round_up(columns - c, kLanes<T>)) / kLanes<T>;
    with_vectors<T>(vectors, [&](auto wide) {
      for (index_t row = 0; row < rows; row += kTileRows) {
        Vec<T> tile[kTileRows][wide.value];
        multiply_strided_tile<wide.value>(left + row * row_entry, row_entry, depth_step, right.column(c), right.width,
                                          depth, tile);
        T* target = sums + row * sums_step + c;
#pragma GCC unroll 8
        for (int i = 0; i < kTileRows; ++i, target += sums_step) {
#pragma GCC unroll 3
          for (int v = 0; v < wide.value; ++v) {
            T* to = target + v * kLanes<T>;
            store(to, add ? load(to) + tile[i][v] : tile[i][v]);
          }
        }
      }
    });
  }
}

}  // namespace subspan
