// grassmann_step: one step of stochastic gradient descent with momentum on the Grassmann manifold, in place.
//   b = momentum * buffer + (1 - dampening) * (gradient + weight_decay * P), u = b or, by Nesterov, gradient + momentum
//   b, D = -lr (u - P P^T u), P <- exp_P(D), buffer <- the parallel transport of b - P P^T b along D, or b itself. P,
//   gradient, buffer (*batch, n, k) with orthonormal columns in P, or (*batch, k, n) with `rows`; float32 or float64,
//   any strides. P and the buffer are read twice and written once, all else is k x k.
// P is orthonormal to its own rounding only. From the products with P alone it is known what P^T P is, so the
// projection is corrected for it by (2 I - P^T P), and with `orthonormalize` the new P is made orthonormal by its
// Cholesky factor (CholeskyQR) without another pass; its row operations are applied to the buffer as well.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"
#include "ops/angles/grassmann_exp.h"

namespace subspan {

struct StepParameters {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, transport, orthonormalize;
};

inline void check_grassmann_step(const TensorView& P, const TensorView& gradient, const TensorView* buffer,
                                 Device device) {
  constexpr const char* op = "grassmann_step";
  CHECK(P.dtype == DType::f32 || P.dtype == DType::f64, op, ": P: expected a float32 or float64 array");
  check_basis(P, P, device, op, "P");
  for (const TensorView* other : {&gradient, buffer}) {
    if (!other) continue;
    check_basis(*other, P, device, op, other == buffer ? "buffer" : "gradient");
    CHECK(other->dtype == P.dtype, op, ": ", other == buffer ? "buffer" : "gradient", ": expected the type of P");
  }
  for (int i = 0; i < P.ndim; ++i) {  // what is written must not be written twice
    CHECK(P.shape[i] <= 1 || P.stride[i] != 0, op, ": P: expected an array without repeated entries");
    CHECK(!buffer || P.shape[i] <= 1 || buffer->ndim != P.ndim || buffer->stride[i] != 0, op,
          ": buffer: expected an array without repeated entries");
  }
}

void grassmann_step_cpu(const TensorView& P, const TensorView& gradient, const TensorView* buffer,
                        const StepParameters& parameters, bool rows, int threads);

}  // namespace subspan
