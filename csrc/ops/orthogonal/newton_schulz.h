// newton_schulz: odd polynomials of degree five applied one after another to the singular values of a matrix that was
// divided by its Frobenius norm,
//   X_0 = G / |G|,   X_{k+1} = (a_k I + b_k R_k + c_k R_k^2) X_k,   R_k = X_k X_k^T on the shorter side.
// Any number of matrices (*batch, m, n) of any shapes, strides and types in one call; results packed, of the type
// computed in. G = 0 gives 0. Matrices of a norm below `least_norm` are divided by that instead.
#pragma once
#include <vector>

#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

struct OddPolynomial {
  double a = 0, b = 0, c = 0;
};

inline void check_newton_schulz(const TensorView& G, const TensorView& result, Device device) {
  constexpr const char* op = "newton_schulz";
  check_input(G, 2, device, op, "G");
  CHECK(is_float(G.dtype), op, ": G: expected a floating point array");
  check_output(result, compute_dtype(G.dtype), G.numel(), device, op, "result");
}

void newton_schulz_cpu(const std::vector<TensorView>& G, const std::vector<TensorView>& results,
                       const std::vector<OddPolynomial>& polynomials, double least_norm, int threads);

}  // namespace subspan
