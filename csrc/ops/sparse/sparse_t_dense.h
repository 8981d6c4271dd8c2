// sparse_t_dense: out = S^T G, and both parts of its gradient for the upstream gradient U in one pass: d_values_im =
// U_m . G_i and d_G = S U. Also the gradient of sparse_decode in its rows W where it is wanted as the rows of the
// columns that have entries, or added to a matrix that is there.
//   S (n, M) of either layout, see row_entries.h, G (*batch, n, D) and U (*batch, M, D) any strides; out (*batch, M,
//   D), d_values as the indices, d_G (*batch, n, D), packed; out
//   may be of half precision.
#pragma once
#include "ops/sparse/row_entries.h"

namespace subspan {

inline void check_sparse_t_dense(const SparseView& S, const TensorView& G, const TensorView& out, Device device) {
  constexpr const char* op = "sparse_t_dense";
  check_sparse(S, device, op);
  const DType compute = compute_dtype(S.values->dtype);
  check_operand(G, S, S.rows(), compute, device, op, "G");
  check_rounded_output(out, compute, S.items() * S.columns * G.size(-1), device, op, "out");
}

inline void check_sparse_t_dense_gradient(const TensorView& U, const SparseView& S, const TensorView& G,
                                          const TensorView& d_values, const TensorView& d_G, Device device) {
  constexpr const char* op = "sparse_t_dense";
  check_sparse(S, device, op);
  const DType compute = compute_dtype(S.values->dtype);
  check_operand(U, S, S.columns, compute, device, op, "upstream");
  check_operand(G, S, S.rows(), compute, device, op, "G");
  CHECK(U.size(-1) == G.size(-1), op, ": upstream: expected the columns of G");
  check_output(d_values, compute, S.items() * S.entries(), device, op, "d_values");
  check_output(d_G, compute, G.numel(), device, op, "d_G");
}

// `columns`: int64, the columns that have entries, rising; there is room for as many as S has entries or columns.
inline void check_used_columns(const SparseView& S, const TensorView& columns, Device device) {
  constexpr const char* op = "sparse_decode";
  check_sparse(S, device, op);
  CHECK(S.items() == 1, op, ": S: expected one matrix");
  check_output(columns, DType::i64, std::min(S.entries(), S.columns), device, op, "columns");
}

// W and d_values absent, or both given. `rows`: (used, D) or, where it is added to, (M, D).
inline void check_weight_rows(const SparseView& S, const TensorView& G, const TensorView* W, const TensorView* d_values,
                              const TensorView& rows, bool added, Device device) {
  constexpr const char* op = "sparse_decode";
  check_sparse(S, device, op);
  CHECK(S.items() == 1, op, ": S: expected one matrix");
  const DType compute = compute_dtype(S.values->dtype);
  check_operand(G, S, S.rows(), compute, device, op, "upstream");
  CHECK((W == nullptr) == (d_values == nullptr), op, ": d_values: expected where there is W");
  if (W) {
    check_operand(*W, S, S.columns, compute, device, op, "W");
    CHECK(W->size(-1) == G.size(-1), op, ": upstream: expected the columns of W");
    check_output(*d_values, compute, S.entries(), device, op, "d_values");
  }
  CHECK(rows.ndim == 2 && rows.size(-1) == G.size(-1) && (!added || rows.size(-2) == S.columns), op,
        ": W.grad: expected the shape of W");
  check_rounded_output(rows, compute, rows.numel(), device, op, "W.grad");
}

void sparse_t_dense_cpu(const SparseView& S, const TensorView& G, const TensorView& out, int threads);
void sparse_t_dense_gradient_cpu(const TensorView& U, const SparseView& S, const TensorView& G,
                                 const TensorView& d_values, const TensorView& d_G, int threads);
// How many, and which.
index_t used_columns_cpu(const SparseView& S, const TensorView& columns, int threads);
void weight_rows_cpu(const SparseView& S, const TensorView& G, const TensorView* W, const TensorView* d_values,
                     const TensorView& rows, bool added, int threads);

}  // namespace subspan
