// linear_topk: topk_rows of the rows x W^T + b, of which never more than some tiles exist.
//   x (*batch, n, d), W (*batch, m, d), b (*batch, m) or absent, any strides, types that are computed in the same one;
//   1 <= k <= m; values (*batch, n, k) of the type computed in and indices (*batch, n, k) int32, packed.
#pragma once
#include "ops/sparse/topk_rows.h"

namespace subspan {

inline void check_linear_topk(const TensorView& x, const TensorView& W, const TensorView* b, const TensorView& values,
                              const TensorView* indices, const TopkParameters& parameters, Device device) {
  constexpr const char* op = "linear_topk";
  check_input(x, 2, device, op, "x");
  check_input(W, 2, device, op, "W");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const index_t k = parameters.k, columns = W.size(-2), rows = batch_count(x, 1), items = batch_count(x, 2);
  const DType compute = compute_dtype(x.dtype);
  CHECK(is_float(W.dtype) && compute_dtype(W.dtype) == compute, op, ": W: expected the type of x");
  CHECK(W.size(-1) == x.size(-1) && batch_count(W, 2) == items, op, ": W: expected the columns and batch of x");
  CHECK(1 <= k && k <= columns && columns < (index_t{1} << 31), op, ": k: expected a number in 1 ... ", columns);
  if (b) {
    check_input(*b, 1, device, op, "b");
    CHECK(is_float(b->dtype) && compute_dtype(b->dtype) == compute, op, ": b: expected the type of x");
    CHECK(b->size(-1) == columns && batch_count(*b, 1) == items, op, ": b: expected a number per row of W");
  }
  check_output(values, compute, rows * k, device, op, "values");
  if (indices) check_output(*indices, DType::i32, rows * k, device, op, "indices");
}

void linear_topk_cpu(const TensorView& x, const TensorView& W, const TensorView* b, const TensorView& values,
                     const TensorView* indices, const TopkParameters& parameters, int threads);

}  // namespace subspan
