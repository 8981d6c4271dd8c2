// topk_rows: the k largest entries of every row, largest first, equal ones by lower column; by their value or their
// magnitude. NaN is larger than every number. With relu, what is not positive is given as 0 (NaN as NaN).
//   x (*batch, n, d) any strides, 1 <= k <= d; values (*batch, n, k) of the type computed in and indices (*batch, n, k)
//   int32, packed.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

struct TopkParameters {
  index_t k;
  bool by_magnitude, relu;
};

inline void check_topk_rows(const TensorView& x, const TensorView& values, const TensorView* indices,
                            const TopkParameters& parameters, Device device) {
  constexpr const char* op = "topk_rows";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const index_t k = parameters.k, columns = x.size(-1), rows = batch_count(x, 1);
  CHECK(1 <= k && k <= columns && columns < (index_t{1} << 31), op, ": k: expected a number in 1 ... ", columns);
  check_output(values, compute_dtype(x.dtype), rows * k, device, op, "values");
  if (indices) check_output(*indices, DType::i32, rows * k, device, op, "indices");
}

void topk_rows_cpu(const TensorView& x, const TensorView& values, const TensorView* indices,
                   const TopkParameters& parameters, int threads);

}  // namespace subspan
