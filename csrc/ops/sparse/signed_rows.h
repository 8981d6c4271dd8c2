// signed_rows: the gradient of losses of column means, out_ij = upstream (factor_j sign(x_ij) + slope x_ij), 0 in
// masked rows and where x_ij = 0.
//   x (*batch, n, d), factor (*batch, d), row_mask (*batch, n) int32 or absent, upstream (*batch), any strides, factor
//   and upstream of the type computed in; out (*batch, n, d) packed.
#pragma once
#include "ops/sparse/flops_loss.h"

namespace subspan {

inline void check_signed_rows(const TensorView& x, const TensorView& factor, const TensorView* row_mask,
                              const TensorView& upstream, const TensorView& out, Device device) {
  constexpr const char* op = "signed_rows";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  check_per_column(factor, x, device, op, "factor");
  if (row_mask) check_row_mask(*row_mask, x, device, op);
  check_input(upstream, 0, device, op, "upstream");
  CHECK(upstream.dtype == factor.dtype && upstream.numel() == batch_count(x, 2), op,
        ": upstream: expected a number per item of the type that is computed in");
  check_output(out, factor.dtype, x.numel(), device, op, "out");
}

void signed_rows_cpu(const TensorView& x, const TensorView& factor, const TensorView* row_mask,
                     const TensorView& upstream, const TensorView& out, double slope, int threads);

}  // namespace subspan
