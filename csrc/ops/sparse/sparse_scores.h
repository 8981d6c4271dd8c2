// sparse_scores: the inner products of all rows of Q with all rows of D, both sparse,
//   S_qd = sum_j Q_qj D_dj
// and the other side of that bilinear form, on the support of Q: A_e = sum_d G_qd D_dj for every entry e of Q, in row q
// and column j, which is the gradient of <G, S> in the value of e. With G^T and the sides exchanged it is that in the
// values of D, and the derivatives of A are S and A again.
//   Q, D: see sparse_operand.h; S, G (*batch, n_Q, n_D), S packed, G any strides; A of the shape of Q's indices,
//   packed.
// Multiply-adds: sum_j n_j^Q n_j^D, with n_j the entries in column j.
#pragma once
#include "ops/sparse/sparse_operand.h"

namespace subspan {

inline void check_sparse_scores(const SparseArrays& q, const SparseArrays& d, const TensorView& scores, index_t columns,
                                Device device) {
  constexpr const char* op = "sparse_scores";
  check_sparse_arrays(q, columns, device, op, "Q");
  check_sparse_arrays(d, columns, device, op, "D");
  CHECK(q.values && d.values, op, ": Q: expected values");
  const DType compute = compute_dtype(q.values->dtype);
  CHECK(compute_dtype(d.values->dtype) == compute, op, ": D: expected the type of Q");
  CHECK(d.items() == q.items(), op, ": D: expected the batch of Q");
  check_output(scores, compute, q.items() * q.rows() * d.rows(), device, op, "scores");
}

inline void check_scores_on_support(const TensorView& G, const SparseArrays& d, const SparseArrays& support,
                                    const TensorView& out, index_t columns, Device device) {
  constexpr const char* op = "sparse_scores";
  check_sparse_arrays(support, columns, device, op, "Q");
  check_sparse_arrays(d, columns, device, op, "D");
  CHECK(d.values, op, ": D: expected values");
  check_input(G, 2, device, op, "upstream");
  CHECK(is_float(G.dtype), op, ": upstream: expected a floating point array");
  const DType compute = compute_dtype(G.dtype);
  CHECK(compute_dtype(d.values->dtype) == compute, op, ": D: expected the type of the upstream gradient");
  const index_t items = support.items();
  CHECK(d.items() == items && batch_count(G, 2) == items, op, ": D: expected the batch of Q");
  CHECK(G.size(-2) == support.rows() && G.size(-1) == d.rows(), op, ": upstream: expected a number per pair of rows");
  check_output(out, compute, items * support.entries(), device, op, "out");
}

void sparse_scores_cpu(const SparseArrays& q, const SparseArrays& d, const TensorView& scores, index_t columns,
                       int threads);
void scores_on_support_cpu(const TensorView& G, const SparseArrays& d, const SparseArrays& support,
                           const TensorView& out, index_t columns, int threads);

}  // namespace subspan
