// stiefel_retract: from a frame X with orthonormal columns in the direction of its tangent vector V, along two curves
// whose end points are combinations X a + V b with k x k coefficients of X^T X, C = X^T V and V^T V.
//   With P = V - X C / 2, W = P X^T - X P^T is skew and W X = V for tangent V.
//   cayley: (I - W/2)^-1 (I + W/2) X, by Woodbury's formula X + [P X] (I - Z^T [P X] / 2)^-1 Z^T X with Z = [X -P]
//   (Wen, Yin 2013, A feasible method for optimization with orthogonality constraints, lemma 4); exp: exp(W) X, the
//   geodesic of the canonical metric (Edelman, Arias, Smith 1998, section 2.4.1), as [X N] exp([[S, -N^T N], [I, 0]])
//   [I; 0] with N = V - X C, S = (C - C^T) / 2: no QR of N, whose rank is free. X, V (*batch, n, k), or (*batch, k, n)
//   with `rows`; any strides and any floating point types. result: as X, packed, of the type computed in for X.
// stiefel_retract_gradient: those of X and V from the gradient G of the result. All three are combinations of X, V and
// G with k x k coefficients of their products; G, of the type computed in, any strides; d_X, d_V as the result.
// The symmetric part of C does not count: of any V the tangent part is taken.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

enum class Retraction { kCayley, kExp };

inline void check_stiefel_retract(const TensorView& X, const TensorView& V, const TensorView& result, Device device) {
  constexpr const char* op = "retract";
  check_input(X, 2, device, op, "X");
  check_input(V, 2, device, op, "V");
  CHECK(is_float(X.dtype), op, ": X: expected a floating point array");
  CHECK(is_float(V.dtype), op, ": V: expected a floating point array");
  CHECK(V.size(-1) == X.size(-1) && V.size(-2) == X.size(-2) && batch_count(V, 2) == batch_count(X, 2), op,
        ": V: expected the shape of X");
  check_output(result, compute_dtype(X.dtype), X.numel(), device, op, "result");
  CHECK(result.ndim >= 2 && result.size(-1) == X.size(-1) && result.size(-2) == X.size(-2), op,
        ": result: expected the shape of X");
}

inline void check_stiefel_retract_gradient(const TensorView& X, const TensorView& V, const TensorView& G,
                                           const TensorView& d_X, const TensorView& d_V, Device device) {
  constexpr const char* op = "retract";
  check_stiefel_retract(X, V, d_X, device);
  check_stiefel_retract(X, V, d_V, device);
  check_input(G, 2, device, op, "G");
  CHECK(G.dtype == compute_dtype(X.dtype) && G.size(-1) == X.size(-1) && G.size(-2) == X.size(-2) &&
            batch_count(G, 2) == batch_count(X, 2),
        op, ": G: expected the shape of X and the type that is computed in");
}

void stiefel_retract_cpu(const TensorView& X, const TensorView& V, const TensorView& result, Retraction method,
                         bool rows, int threads);
void stiefel_retract_gradient_cpu(const TensorView& X, const TensorView& V, const TensorView& G, const TensorView& d_X,
                                  const TensorView& d_V, Retraction method, bool rows, int threads);

}  // namespace subspan
