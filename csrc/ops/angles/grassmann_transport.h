// grassmann_transport: parallel transport of the tangent vector V along the geodesic from span X in the direction D,
// to time 1 (Edelman, Arias, Smith 1998, eq. 2.68),
//   V - (D versine(G) + X sine(G)) H,   G = D^T D,  H = D^T V,  versine(G) = G^-1 (I - cos G^1/2),
//   sine(G) = G^-1/2 sin G^1/2.
// With D = U S W^T: U cos(S) U^T - U U^T = -D versine(G) D^T and W sin(S) U^T = sine(G) D^T.
//   X, D, V as in grassmann_exp.h; result: as X, packed, of the type computed in for X.
#pragma once
#include "ops/angles/grassmann_exp.h"

namespace subspan {

inline void check_grassmann_transport(const TensorView& X, const TensorView& D, const TensorView& V,
                                      const TensorView& result, Device device) {
  constexpr const char* op = "grassmann_transport";
  check_basis(X, X, device, op, "X");
  check_basis(D, X, device, op, "D");
  check_basis(V, X, device, op, "V");
  check_output(result, compute_dtype(X.dtype), X.numel(), device, op, "result");
  CHECK(result.ndim >= 2 && result.size(-1) == X.size(-1) && result.size(-2) == X.size(-2), op,
        ": result: expected the shape of X");
}

void grassmann_transport_cpu(const TensorView& X, const TensorView& D, const TensorView& V, const TensorView& result,
                             bool rows, int threads);

}  // namespace subspan
