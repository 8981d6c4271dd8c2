// phm_rank: y = x W^T + bias for a rule of few rank-one terms, A_i = sum_r U[i, r] P[:, r] V[:, r]^T, in as many
// products of small matrices.
//   y_p = sum_r P[p, r] (sum_q V[q, r] x_q) T_r^T with T_r = sum_i U[i, r] S_i, or T_r = S_r where U is absent.
//   x (*batch, rows, q k), P (*batch, p, rank), V (*batch, q, rank), U (*batch, terms, rank) or absent,
//   S (*batch, terms, l, k), bias (*batch, p l) or absent, any strides, all but x of the type computed in;
//   y (*batch, rows, p l) packed. Transposed: T_r in place of T_r^T, x (*batch, rows, q l) and y (*batch, rows, p k).
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_phm_rank(const TensorView& x, const TensorView& P, const TensorView& V, const TensorView* U,
                           const TensorView& S, const TensorView* bias, const TensorView& y, bool transposed,
                           Device device) {
  constexpr const char* op = "phm_rank";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const DType dtype = compute_dtype(x.dtype);
  const std::int64_t items = batch_count(x, 2);
  check_input(S, 3, device, op, "S");
  if (U) check_input(*U, 2, device, op, "U");
  const std::int64_t rank = U ? U->size(-1) : S.size(-3);
  CHECK(S.dtype == dtype && batch_count(S, 3) == items && S.size(-3) > 0, op, ": S: expected matrices of each item");
  if (U) {
    CHECK(U->dtype == dtype && batch_count(*U, 2) == items && U->size(-2) == S.size(-3) && rank > 0, op,
          ": U: expected a row for each term");
  }
  for (const TensorView* factor : {&P, &V}) {
    check_input(*factor, 2, device, op, "P, V");
    CHECK(factor->dtype == dtype && batch_count(*factor, 2) == items && factor->size(-1) == rank, op,
          ": P, V: expected a column for each product");
  }
  const std::int64_t length = S.size(transposed ? -2 : -1), outputs = P.size(-2) * S.size(transposed ? -1 : -2);
  CHECK(x.size(-1) == V.size(-2) * length, op, ": x: expected rows as long as those of W");
  if (bias) {
    check_input(*bias, 1, device, op, "bias");
    CHECK(bias->dtype == dtype && bias->size(-1) == outputs && batch_count(*bias, 1) == items, op,
          ": bias: expected an entry for every output");
  }
  check_output(y, dtype, items * x.size(-2) * outputs, device, op, "y");
}

void phm_rank_cpu(const TensorView& x, const TensorView& P, const TensorView& V, const TensorView* U,
                  const TensorView& S, const TensorView* bias, const TensorView& y, bool transposed, int threads);

}  // namespace subspan
