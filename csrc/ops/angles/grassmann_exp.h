// grassmann_exp: the geodesic of the Grassmann manifold from span X in the direction D, at time 1,
//   X cos(G^1/2) + D G^-1/2 sin(G^1/2),   G = D^T D,
// which is X V cos(S) V^T + U sin(S) V^T for the singular value decomposition D = U S V^T.
//   X, D (*batch, n, k) with orthonormal columns in X and X^T D = 0, or (*batch, k, n) with `rows`; any strides and any
//   floating point types. `project` replaces D by D - X X^T D. result: as X, packed, of the type computed in for X.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_basis(const TensorView& basis, const TensorView& like, Device device, const char* op,
                        const char* name) {
  check_input(basis, 2, device, op, name);
  CHECK(is_float(basis.dtype), op, ": ", name, ": expected a floating point array");
  CHECK(basis.size(-1) == like.size(-1) && basis.size(-2) == like.size(-2) &&
            batch_count(basis, 2) == batch_count(like, 2),
        op, ": ", name, ": expected the shape of X");
}

inline void check_grassmann_exp(const TensorView& X, const TensorView& D, const TensorView& result, Device device) {
  constexpr const char* op = "grassmann_exp";
  check_basis(X, X, device, op, "X");
  check_basis(D, X, device, op, "D");
  check_output(result, compute_dtype(X.dtype), X.numel(), device, op, "result");
  CHECK(result.ndim >= 2 && result.size(-1) == X.size(-1) && result.size(-2) == X.size(-2), op,
        ": result: expected the shape of X");
}

void grassmann_exp_cpu(const TensorView& X, const TensorView& D, const TensorView& result, bool project, bool rows,
                       int threads);

}  // namespace subspan
