// stiefel_step: one step of descent with momentum on frames X (*batch, n, k) of orthonormal columns, in place.
//   r = G + X A, the Riemannian gradient of the gradient G: A = -sym(X^T G) in the Euclidean metric and -G^T X in the
//   canonical one (Edelman, Arias, Smith 1998, eq. 2.53); b = momentum * buffer + share * r; u = b or, by Nesterov,
//   r + momentum b; X <- R_X(-step u) by QR with a positive diagonal or by the polar factor; buffer <- the tangent part
//   of b at the new X. `adaptive`: second <- beta2 second + (1 - beta2) <r, r>, one number for a frame in its metric,
//   and step = lr / (1 - momentum^t) / (sqrt(second / (1 - beta2^t)) + eps); with `largest` the largest second so far.
// X, gradient and buffer are of one type, float32 or float64, and any strides; (*batch, k, n) with `rows`. second and
// largest: (*batch, 1, 1). Any number of arrays of any shapes in one call.
// All else than two passes over the arrays is k x k and in float64. X is orthonormal to rounding of its own type only:
// what it is follows from X^T X, which the projections and the retraction take into account, so that errors do not add
// up.
#pragma once
#include <vector>

#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

struct StiefelArrays {
  TensorView X, gradient;
  const TensorView *buffer = nullptr, *second = nullptr, *largest = nullptr;
  double steps = 0;  // t
};

struct StiefelStep {
  double lr, momentum, share, beta2, eps;
  bool nesterov, maximize, canonical, polar, adaptive, rows;
};

inline void check_stiefel_step(const StiefelArrays& arrays, const StiefelStep& step, const char* op, Device device) {
  const TensorView& X = arrays.X;
  CHECK(X.dtype == DType::f32 || X.dtype == DType::f64, op, ": X: expected a float32 or float64 array");
  const auto check = [&](const TensorView& view, const char* name, bool written) {
    check_input(view, 2, device, op, name);
    CHECK(view.dtype == X.dtype, op, ": ", name, ": expected the type of X");
    for (int i = 0; written && i < view.ndim; ++i) {  // what is written must not be written twice
      CHECK(view.shape[i] <= 1 || view.stride[i] != 0, op, ": ", name, ": expected an array without repeated entries");
    }
  };
  check(X, "X", true);
  for (const TensorView* other : {&arrays.gradient, arrays.buffer}) {
    if (!other) continue;
    const char* name = other == arrays.buffer ? "buffer" : "gradient";
    check(*other, name, other == arrays.buffer);
    CHECK(other->size(-1) == X.size(-1) && other->size(-2) == X.size(-2) && batch_count(*other, 2) == batch_count(X, 2),
          op, ": ", name, ": expected the shape of X");
  }
  for (const TensorView* moment : {arrays.second, arrays.largest}) {
    if (!moment) continue;
    check(*moment, "second", true);
    CHECK(moment->size(-1) == 1 && moment->size(-2) == 1 && batch_count(*moment, 2) == batch_count(X, 2), op,
          ": second: expected one number for a frame");
  }
  CHECK(step.adaptive == (arrays.second != nullptr), op, ": second: expected it where it is used");
  CHECK(arrays.buffer || !(step.adaptive || step.nesterov), op, ": buffer: expected one");
}

void stiefel_step_cpu(const std::vector<StiefelArrays>& arrays, const StiefelStep& step, int threads);

}  // namespace subspan
