// batch_topk: the k n largest entries of a whole matrix of n rows, row by row in the order of their columns; equal ones
// are taken row by row too, and NaN before all numbers. With relu, what is not positive is given as 0.
//   x (*batch, n, d) any strides, 1 <= k <= d; values (*batch, n k) of the type computed in, indices (*batch, n k)
//   int32, the columns, and counts (*batch, n) int32, how many entries each row has; packed.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_batch_topk(const TensorView& x, const TensorView& values, const TensorView* indices,
                             const TensorView* counts, index_t k, Device device) {
  constexpr const char* op = "batch_topk";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const index_t columns = x.size(-1), rows = batch_count(x, 1);
  CHECK(1 <= k && k <= columns && columns < (index_t{1} << 31), op, ": k: expected a number in 1 ... ", columns);
  check_output(values, compute_dtype(x.dtype), rows * k, device, op, "values");
  if (indices) check_output(*indices, DType::i32, rows * k, device, op, "indices");
  if (counts) check_output(*counts, DType::i32, rows, device, op, "counts");
}

void batch_topk_cpu(const TensorView& x, const TensorView& values, const TensorView* indices, const TensorView* counts,
                    index_t k, bool relu, int threads);

}  // namespace subspan
