// subspace_logits: scale ||W_c x||_2 of every row x and every class c, the length of its projection on the span of
// the rows of W_c where these are orthonormal; with `normalize` divided by ||x||, and 0 where x = 0.
// With z = W_c x and u = scale g z / ||z|| for the upstream gradient g, 0 where z = 0, the gradients are
//   d_x = y = sum_c W_c^T u_c,   d_W_c = u_c x^T summed over rows;
// normalised, u is divided by ||x|| too and d_x = y - x <x, y> / ||x||^2.
//   x (*batch, m, n), W (*batch, classes, k, n), any strides, half types too; logits (*batch, m, classes) packed.
//   projections (*batch, classes * k, m) packed: z, only where a gradient will be asked for.
//   upstream (*batch, m, classes) any strides; d_x (*batch, m, n) packed; d_W (*batch, classes, k, n) packed or, with
//   `columns`, (*batch, classes, n, k); a gradient that is not wanted has no elements.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

struct SubspaceParameters {
  double scale = 1;
  bool normalize = false;
};

struct SubspaceGradientParameters : SubspaceParameters {
  bool columns = false, wants_x = true, wants_W = true;
};

inline void check_subspace_operands(const TensorView& x, const TensorView& W, Device device) {
  constexpr const char* op = "subspace_logits";
  check_input(x, 2, device, op, "x");
  check_input(W, 3, device, op, "W");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  CHECK(is_float(W.dtype), op, ": W: expected a floating point array");
  CHECK(W.size(-1) == x.size(-1) && batch_count(W, 3) == batch_count(x, 2), op,
        ": W: expected basis vectors as long as the rows of x");
}

inline void check_subspace_logits(const TensorView& x, const TensorView& W, const TensorView& logits,
                                  const TensorView* projections, Device device) {
  constexpr const char* op = "subspace_logits";
  check_subspace_operands(x, W, device);
  const DType dtype = compute_dtype(x.dtype);
  const std::int64_t rows = batch_count(x, 2) * x.size(-2);
  check_output(logits, dtype, rows * W.size(-3), device, op, "logits");
  if (projections) check_output(*projections, dtype, rows * W.size(-3) * W.size(-2), device, op, "projections");
}

inline void check_subspace_logits_gradient(const TensorView& x, const TensorView& W, const TensorView& projections,
                                           const TensorView& upstream, const TensorView& d_x, const TensorView& d_W,
                                           const SubspaceGradientParameters& parameters, Device device) {
  constexpr const char* op = "subspace_logits";
  check_subspace_operands(x, W, device);
  const DType dtype = compute_dtype(x.dtype);
  const std::int64_t items = batch_count(x, 2), rows = x.size(-2), classes = W.size(-3);
  check_input(projections, 2, device, op, "projections");
  CHECK(projections.dtype == dtype && batch_count(projections, 2) == items && projections.size(-1) == rows &&
            projections.size(-2) == classes * W.size(-2),
        op, ": projections: expected those of x on W");
  check_input(upstream, 2, device, op, "upstream");
  CHECK(upstream.dtype == dtype && batch_count(upstream, 2) == items && upstream.size(-1) == classes &&
            upstream.size(-2) == rows,
        op, ": upstream: expected the shape of the logits");
  check_output(d_x, dtype, parameters.wants_x ? x.numel() : 0, device, op, "d_x");
  check_output(d_W, dtype, parameters.wants_W ? W.numel() : 0, device, op, "d_W");
}

void subspace_logits_cpu(const TensorView& x, const TensorView& W, const TensorView& logits,
                         const TensorView* projections, const SubspaceParameters& parameters, int threads);

void subspace_logits_gradient_cpu(const TensorView& x, const TensorView& W, const TensorView& projections,
                                  const TensorView& upstream, const TensorView& d_x, const TensorView& d_W,
                                  const SubspaceGradientParameters& parameters, int threads);

}  // namespace subspan
