// phm_linear_lowrank: y = x W^T + bias with W = sum_i A_i (x) U_i V_i, without forming any U_i V_i, and its gradient.
//   x (*batch, rows, q k), A (*batch, terms, p, q), U (*batch, terms, l, rank), V (*batch, terms, rank, k),
//   bias (*batch, p l) or absent, any strides, all but x of the type computed in; y (*batch, rows, p l) packed.
//   Every component x_q meets every V_i, the rule mixes the products, and these meet every U_i. The gradient meets dy
//   in the same way from the other end and computes the products with V again.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

struct LowRankFactors {
  const TensorView &A, &U, &V;
  const TensorView* bias;

  index_t width() const { return A.size(-3) * U.size(-1); }
  index_t inputs() const { return A.size(-1) * V.size(-1); }
  index_t outputs() const { return A.size(-2) * U.size(-2); }
  double flops(index_t rows) const {
    return 2.0 * static_cast<double>(rows * width()) *
           static_cast<double>(inputs() + outputs() + A.size(-2) * A.size(-1));
  }
};

// Where gradients of the factors go; any may be absent.
struct LowRankGradients {
  const TensorView *A, *U, *V, *bias;
};

inline void check_lowrank_factors(const LowRankFactors& map, DType dtype, std::int64_t items, Device device,
                                  const char* op) {
  for (const TensorView* factor : {&map.A, &map.U, &map.V}) {
    check_input(*factor, 3, device, op, "A, U, V");
    CHECK(factor->dtype == dtype && batch_count(*factor, 3) == items && factor->size(-3) == map.A.size(-3), op,
          ": A, U, V: expected equal batches and terms");
  }
  CHECK(map.U.size(-1) == map.V.size(-2), op, ": V: expected as many rows as U has columns");
  if (!map.bias) return;
  check_input(*map.bias, 1, device, op, "bias");
  CHECK(map.bias->dtype == dtype && map.bias->size(-1) == map.outputs() && batch_count(*map.bias, 1) == items, op,
        ": bias: expected an entry for every output");
}

inline void check_lowrank_gradients(const LowRankFactors& map, const LowRankGradients& to, std::int64_t items,
                                    Device device, const char* op) {
  if (to.A) check_output(*to.A, map.A.dtype, map.A.numel(), device, op, "dA");
  if (to.U) check_output(*to.U, map.A.dtype, map.U.numel(), device, op, "dU");
  if (to.V) check_output(*to.V, map.A.dtype, map.V.numel(), device, op, "dV");
  if (to.bias) check_output(*to.bias, map.A.dtype, items * map.outputs(), device, op, "dbias");
}

inline void check_phm_lowrank(const TensorView& x, const LowRankFactors& map, Device device, const char* op) {
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  check_lowrank_factors(map, compute_dtype(x.dtype), batch_count(x, 2), device, op);
  CHECK(x.size(-1) == map.inputs(), op, ": x: expected rows as long as those of W");
}

inline void check_phm_lowrank_gradient(const TensorView& x, const LowRankFactors& map, const TensorView& dy,
                                       const TensorView* dx, const LowRankGradients& to, Device device,
                                       const char* op) {
  check_phm_lowrank(x, map, device, op);
  const std::int64_t items = batch_count(x, 2);
  check_input(dy, 2, device, op, "dy");
  CHECK(dy.dtype == map.A.dtype && dy.size(-1) == map.outputs() && dy.size(-2) == x.size(-2) &&
            batch_count(dy, 2) == items,
        op, ": dy: expected the shape of y");
  if (dx) check_output(*dx, map.A.dtype, items * x.size(-2) * x.size(-1), device, op, "dx");
  check_lowrank_gradients(map, to, items, device, op);
}

void phm_lowrank_cpu(const TensorView& x, const LowRankFactors& map, const TensorView& y, int threads);
// dx may be absent.
void phm_lowrank_gradient_cpu(const TensorView& x, const LowRankFactors& map, const TensorView& dy,
                              const TensorView* dx, const LowRankGradients& to, int threads);

}  // namespace subspan
