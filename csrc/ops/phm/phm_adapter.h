// phm_adapter: y = [x +] f(x D^T + b) E^T + c, a bottleneck between two sums of Kronecker products of low rank,
//   D = sum_i A_i (x) U_i V_i and E = sum_i B_i (x) L_i R_i.
//   x (*batch, rows, q k) of any type; of `down` A (*batch, terms, p, q), U (*batch, terms, l, rank),
//   V (*batch, terms, rank, k), b (*batch, p l) or absent; of `up` the same with q' k' = p l and sizes and terms of its
//   own; any strides, all but x of the type computed in. y (*batch, rows, p' l') packed; with the residual x is as
//   wide. Gradients come for x, and for all factors or none; hidden units are computed again.
#pragma once
#include "ops/phm/activation.h"
#include "ops/phm/phm_lowrank.h"

namespace subspan {

struct AdapterOptions {
  Activation activation;
  bool residual;
};

inline void check_phm_adapter(const TensorView& x, const LowRankFactors& down, const LowRankFactors& up, bool residual,
                              Device device) {
  constexpr const char* op = "phm_adapter";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const std::int64_t items = batch_count(x, 2);
  check_lowrank_factors(down, compute_dtype(x.dtype), items, device, op);
  check_lowrank_factors(up, compute_dtype(x.dtype), items, device, op);
  CHECK(x.size(-1) == down.inputs() && down.outputs() == up.inputs(), op, ": up: expected maps that follow each other");
  CHECK(!residual || up.outputs() == down.inputs(), op, ": residual: expected outputs as wide as x");
}

void phm_adapter_cpu(const TensorView& x, const LowRankFactors& down, const LowRankFactors& up, const TensorView& y,
                     const AdapterOptions& options, int threads);
// dx may be absent, or both sets of gradients of factors.
void phm_adapter_gradient_cpu(const TensorView& x, const LowRankFactors& down, const LowRankFactors& up,
                              const TensorView& dy, const TensorView* dx, const LowRankGradients* d_down,
                              const LowRankGradients* d_up, const AdapterOptions& options, int threads);

}  // namespace subspan
