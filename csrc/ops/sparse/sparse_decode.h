// sparse_decode: out = S W + bias, and both parts of its gradient for the upstream gradient G in one pass:
// d_values_im = G_i . W_m and d_W = S^T G.
//   S (n, M) of either layout, see row_entries.h, W (*batch, M, D) and G (*batch, n, D) any strides, bias (*batch, D)
//   of the type computed in; out (*batch, n, D), d_values as the indices, d_W (*batch, M, D), packed; d_W
//   may be of half precision.
#pragma once
#include "ops/sparse/row_entries.h"

namespace subspan {

inline void check_sparse_decode(const SparseView& S, const TensorView& W, const TensorView* bias, const TensorView& out,
                                Device device) {
  constexpr const char* op = "sparse_decode";
  check_sparse(S, device, op);
  const DType compute = compute_dtype(S.values->dtype);
  check_operand(W, S, S.columns, compute, device, op, "W");
  if (bias) {
    check_input(*bias, 1, device, op, "bias");
    CHECK(bias->dtype == compute && bias->size(-1) == W.size(-1) && batch_count(*bias, 1) == S.items(), op,
          ": bias: expected a number per column of W of the type that is computed in");
  }
  check_output(out, compute, S.items() * S.rows() * W.size(-1), device, op, "out");
}

inline void check_sparse_decode_gradient(const TensorView& G, const SparseView& S, const TensorView& W,
                                         const TensorView& d_values, const TensorView& d_W, Device device) {
  constexpr const char* op = "sparse_decode";
  check_sparse(S, device, op);
  const DType compute = compute_dtype(S.values->dtype);
  check_operand(G, S, S.rows(), compute, device, op, "upstream");
  check_operand(W, S, S.columns, compute, device, op, "W");
  CHECK(G.size(-1) == W.size(-1), op, ": upstream: expected the columns of W");
  check_output(d_values, compute, S.items() * S.entries(), device, op, "d_values");
  check_rounded_output(d_W, compute, S.items() * S.columns * W.size(-1), device, op, "d_W");
}

void sparse_decode_cpu(const SparseView& S, const TensorView& W, const TensorView* bias, const TensorView& out,
                       int threads);
void sparse_decode_gradient_cpu(const TensorView& G, const SparseView& S, const TensorView& W,
                                const TensorView& d_values, const TensorView& d_W, int threads);

}  // namespace subspan
