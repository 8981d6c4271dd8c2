// phm_linear_lowrank: y = x W^T + bias with W = sum_i A_i (x) U_i V_i, without forming any U_i V_i.
//   x (*batch, rows, q k), A (*batch, terms, p, q), U (*batch, terms, l, rank), V (*batch, terms, rank, k),
//   bias (*batch, p l) or absent, any strides, all but x of the type computed in; y (*batch, rows, p l) packed.
//   Every component x_q meets every V_i, the rule mixes the products, and these meet every U_i.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_phm_lowrank(const TensorView& x, const TensorView& A, const TensorView& U, const TensorView& V,
                              const TensorView* bias, const TensorView& y, Device device) {
  constexpr const char* op = "phm_linear_lowrank";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const DType dtype = compute_dtype(x.dtype);
  const std::int64_t items = batch_count(x, 2);
  for (const TensorView* factor : {&A, &U, &V}) {
    check_input(*factor, 3, device, op, "A, U, V");
    CHECK(factor->dtype == dtype && batch_count(*factor, 3) == items && factor->size(-3) == A.size(-3), op,
          ": A, U, V: expected equal batches and terms");
  }
  CHECK(U.size(-1) == V.size(-2), op, ": V: expected as many rows as U has columns");
  CHECK(x.size(-1) == A.size(-1) * V.size(-1), op, ": x: expected rows as long as those of W");
  const std::int64_t outputs = A.size(-2) * U.size(-2);
  if (bias) {
    check_input(*bias, 1, device, op, "bias");
    CHECK(bias->dtype == dtype && bias->size(-1) == outputs && batch_count(*bias, 1) == items, op,
          ": bias: expected an entry for every output");
  }
  check_output(y, dtype, items * x.size(-2) * outputs, device, op, "y");
}

void phm_lowrank_cpu(const TensorView& x, const TensorView& A, const TensorView& U, const TensorView& V,
                     const TensorView* bias, const TensorView& y, int threads);

}  // namespace subspan
