// phm_weight: W = sum_i A_i (x) S_i, the weight of a hypercomplex layer, and its gradient.
//   A (*batch, terms, p, q), S (*batch, terms, l, k), any strides; W (*batch, p l, q k) packed.
//   The gradient of an upstream dW (*batch, p l, q k): dS_i[a, b] = sum_pq A[i, p, q] dW[(p, a), (q, b)] and
//   dA[i, p, q] = sum_ab S[i, a, b] dW[(p, a), (q, b)].
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_phm_factors(const TensorView& A, const TensorView& S, DType dtype, std::int64_t items, Device device,
                              const char* op) {
  check_input(A, 3, device, op, "A");
  check_input(S, 3, device, op, "S");
  CHECK(A.dtype == dtype && S.dtype == dtype, op, ": A, S: expected the type that is computed in");
  CHECK(A.size(-3) > 0 && A.size(-3) == S.size(-3), op, ": S: expected as many terms as A, at least one");
  CHECK(batch_count(A, 3) == items && batch_count(S, 3) == items, op, ": A, S: expected equal batches");
}

// Gradients of A and S, absent where they are not wanted.
inline void check_phm_gradients(const TensorView& A, const TensorView& S, const TensorView* dA, const TensorView* dS,
                                Device device, const char* op) {
  if (dA) check_output(*dA, A.dtype, A.numel(), device, op, "dA");
  if (dS) check_output(*dS, A.dtype, S.numel(), device, op, "dS");
}

inline void check_phm_weight(const TensorView& A, const TensorView& S, const TensorView& W, Device device) {
  constexpr const char* op = "phm_weight";
  check_phm_factors(A, S, W.dtype, batch_count(A, 3), device, op);
  check_output(W, A.dtype, batch_count(A, 3) * A.size(-2) * A.size(-1) * S.size(-2) * S.size(-1), device, op, "W");
}

inline void check_phm_weight_gradient(const TensorView& A, const TensorView& S, const TensorView& dW,
                                      const TensorView* dA, const TensorView* dS, Device device) {
  constexpr const char* op = "phm_weight_gradient";
  check_input(dW, 2, device, op, "dW");
  check_phm_factors(A, S, dW.dtype, batch_count(dW, 2), device, op);
  CHECK(dW.size(-2) == A.size(-2) * S.size(-2) && dW.size(-1) == A.size(-1) * S.size(-1), op,
        ": dW: expected the shape of W");
  check_phm_gradients(A, S, dA, dS, device, op);
}

void phm_weight_cpu(const TensorView& A, const TensorView& S, const TensorView& W, int threads);
void phm_weight_gradient_cpu(const TensorView& A, const TensorView& S, const TensorView& dW, const TensorView* dA,
                             const TensorView* dS, int threads);

}  // namespace subspan
