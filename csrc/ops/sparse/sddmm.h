// sddmm: the entries of G W^T at the places of S, G_i . W_m for each entry (i, m); its values are not read.
//   G (*batch, n, D), W (*batch, M, D), any strides; S (n, M) of either layout, see row_entries.h; out packed, of the
//   shape of the indices.
#pragma once
#include "ops/sparse/row_entries.h"

namespace subspan {

inline void check_sddmm(const TensorView& G, const TensorView& W, const SparseView& S, const TensorView& out,
                        Device device) {
  constexpr const char* op = "sddmm";
  check_sparse(S, device, op);
  CHECK(is_float(G.dtype), op, ": G: expected a floating point array");
  const DType compute = compute_dtype(G.dtype);
  check_operand(G, S, S.rows(), compute, device, op, "G");
  check_operand(W, S, S.columns, compute, device, op, "W");
  CHECK(G.size(-1) == W.size(-1), op, ": W: expected the columns of G");
  check_output(out, compute, S.items() * S.entries(), device, op, "out");
}

void sddmm_cpu(const TensorView& G, const TensorView& W, const SparseView& S, const TensorView& out, int threads);

}  // namespace subspan
