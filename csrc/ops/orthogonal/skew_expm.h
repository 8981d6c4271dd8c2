// skew_expm: Q = exp K, orthogonal, of the skew part K = (A - A^T) / 2 of many square matrices.
//   A (*batch, n, n) any strides; Q (*batch, n, n) packed.
// skew_expm_gradient: that of A from A, Q and the gradient G of Q,
//   d_A = int_0^1 exp(t K) N exp(-t K) dt,   N = (Q^T G - G^T Q) / 2.
//   A as above; Q and G of the type computed in, any strides; d_A packed.
// An item that is not finite is NaN.
//
// exp K = r(K / 2^s)^(2^s) with the diagonal Pade approximant r = (V - U)^-1 (V + U), U odd and V even, which is the
// Cayley transform of a skew matrix: orthogonal but for rounding, whatever its degree. Squaring doubles what rounding
// does to that, so that steps of Newton's method for the polar factor, Q (3 I - Q^T Q) / 2, follow.
// The integral is (exp(c) - 1) / c of the commutator c = [K, .], applied to N: a Taylor polynomial at K / 2^s, where
// every commutator of skew matrices is one product, P - P^T with P = K X; and J(2h) = (J(h) + exp(hK) J(h) exp(-hK))
// / 2.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_skew_expm(const TensorView& A, const TensorView& Q, Device device) {
  constexpr const char* op = "skew_expm";
  check_input(A, 2, device, op, "A");
  CHECK(is_float(A.dtype), op, ": A: expected a floating point array");
  CHECK(A.size(-1) == A.size(-2), op, ": A: expected square matrices, got ", A.size(-2), " x ", A.size(-1));
  check_output(Q, compute_dtype(A.dtype), A.numel(), device, op, "Q");
}

inline void check_skew_expm_gradient(const TensorView& A, const TensorView& Q, const TensorView& G,
                                     const TensorView& d_A, Device device) {
  constexpr const char* op = "skew_expm_gradient";
  check_skew_expm(A, d_A, device);
  for (const TensorView* other : {&Q, &G}) {
    const char* name = other == &Q ? "Q" : "G";
    check_input(*other, 2, device, op, name);
    CHECK(other->dtype == compute_dtype(A.dtype), op, ": ", name, ": expected the type that is computed in");
    CHECK(other->size(-1) == A.size(-1) && other->size(-2) == A.size(-1) && batch_count(*other, 2) == batch_count(A, 2),
          op, ": ", name, ": expected the shape of A");
  }
}

void skew_expm_cpu(const TensorView& A, const TensorView& Q, int threads);
void skew_expm_gradient_cpu(const TensorView& A, const TensorView& Q, const TensorView& G, const TensorView& d_A,
                            int threads);

}  // namespace subspan
