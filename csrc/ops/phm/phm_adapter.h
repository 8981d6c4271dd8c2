// phm_adapter: y = [x +] f(x D^T + b) E^T + c, a bottleneck between two sums of Kronecker products of low rank,
//   D = sum_i A_i (x) U_i V_i and E = sum_i B_i (x) L_i R_i.
//   x (*batch, rows, q k) of any type; of `down` A (*batch, terms, p, q), U (*batch, terms, l, rank),
//   V (*batch, terms, rank, k), b (*batch, p l) or absent; of `up` the same with q' k' = p l and sizes and terms of its
//   own; any strides, all but x of the type computed in. y (*batch, rows, p' l') packed; with the residual x is as
//   wide. Gradients come for x, and for all factors or none; hidden units are computed again.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"
#include "ops/phm/activation.h"

namespace subspan {

struct AdapterFactors {
  const TensorView &A, &U, &V;
  const TensorView* bias;

  index_t inputs() const { return A.size(-1) * V.size(-1); }
  index_t outputs() const { return A.size(-2) * U.size(-2); }
};

struct AdapterOptions {
  Activation activation;
  bool residual;
};

// Gradients of one map's factors; the bias' is absent where the bias is.
struct AdapterGradients {
  const TensorView &A, &U, &V;
  const TensorView* bias;
};

inline void check_adapter_factors(const AdapterFactors& map, DType dtype, std::int64_t items, Device device,
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

inline void check_phm_adapter(const TensorView& x, const AdapterFactors& down, const AdapterFactors& up, bool residual,
                              Device device) {
  constexpr const char* op = "phm_adapter";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const std::int64_t items = batch_count(x, 2);
  check_adapter_factors(down, compute_dtype(x.dtype), items, device, op);
  check_adapter_factors(up, compute_dtype(x.dtype), items, device, op);
  CHECK(x.size(-1) == down.inputs() && down.outputs() == up.inputs(), op, ": up: expected maps that follow each other");
  CHECK(!residual || up.outputs() == down.inputs(), op, ": residual: expected outputs as wide as x");
}

inline void check_adapter_gradients(const AdapterFactors& map, const AdapterGradients& to, Device device) {
  constexpr const char* op = "phm_adapter_gradient";
  check_output(to.A, map.A.dtype, map.A.numel(), device, op, "dA");
  check_output(to.U, map.U.dtype, map.U.numel(), device, op, "dU");
  check_output(to.V, map.V.dtype, map.V.numel(), device, op, "dV");
  CHECK(!to.bias || map.bias, op, ": dbias: expected none without a bias");
  if (to.bias) check_output(*to.bias, map.bias->dtype, map.bias->numel(), device, op, "dbias");
}

void phm_adapter_cpu(const TensorView& x, const AdapterFactors& down, const AdapterFactors& up, const TensorView& y,
                     const AdapterOptions& options, int threads);
// dx may be absent, or both sets of gradients of factors.
void phm_adapter_gradient_cpu(const TensorView& x, const AdapterFactors& down, const AdapterFactors& up,
                              const TensorView& dy, const TensorView* dx, const AdapterGradients* d_down,
                              const AdapterGradients* d_up, const AdapterOptions& options, int threads);

}  // namespace subspan
