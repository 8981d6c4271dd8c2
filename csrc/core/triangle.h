// The packed upper triangle of a symmetric matrix of order d, row after row, as torch.triu_indices lists it:
//   (0,0) (0,1) ... (0,d-1) (1,1) ... (1,d-1) ... (d-1,d-1)
// Entry (a, b), a <= b, is number a (2 d - a - 1) / 2 + b. By symmetry this is also the lower triangle, column by
// column.
#pragma once
#include <cmath>

#include "core/tensor_view.h"

namespace subspan {

constexpr index_t triangle_size(index_t order) { return order * (order + 1) / 2; }

// The order of a triangle of `entries` entries, or -1 if there is none.
inline index_t triangle_order(index_t entries) {
  const auto order = static_cast<index_t>((std::sqrt(8.0 * static_cast<double>(entries) + 1) - 1) / 2 + 0.5);
  return triangle_size(order) == entries ? order : -1;
}

}  // namespace subspan
