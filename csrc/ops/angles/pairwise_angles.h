// A function of the principal angles of every subspace of one set with every one of another.
//   A (*batch, N, n, p), B (*batch, M, n, q): orthonormal bases as columns, any strides, one batch shape. r = min(p,
//   q). values: (*batch, N, M, r) angles or cosines, or (*batch, N, M); info (*batch, N, M) int32: 0, or -1 for a pair
//   that is not finite.
// The gradient takes an upstream gradient in the shape of values and gives Phi (*batch, N, p, M, q), of pair (i, j)
// U diag(upstream . d value / d angle / sine) V^T: minus the derivative with respect to the entries of A_i^T B_j.
#pragma once
#include "ops/angles/subspace_angles.h"

namespace subspan {

inline void check_sets(const TensorView& A, const TensorView& B, Device device, const char* op) {
  check_input(A, 3, device, op, "A");
  check_input(B, 3, device, op, "B");
  CHECK(is_float(A.dtype), op, ": A: expected a floating point array");
  CHECK(B.dtype == A.dtype, op, ": B: expected the dtype of A");
  CHECK(A.size(-2) == B.size(-2), op, ": B: expected ", A.size(-2), " rows as in A, got ", B.size(-2));
  CHECK(A.ndim == B.ndim, op, ": B: expected the batch dimensions of A");
  for (int i = 0; i < A.ndim - 3; ++i) CHECK(A.shape[i] == B.shape[i], op, ": B: expected the batch dimensions of A");
}

inline void check_pairwise_angles(const TensorView& A, const TensorView& B, const TensorView& values,
                                  const TensorView* info, const AngleParameters& parameters, Device device) {
  constexpr const char* op = "principal_angles";
  check_sets(A, B, device, op);
  const index_t pairs = batch_count(A, 3) * A.size(-3) * B.size(-3), angles = std::min(A.size(-1), B.size(-1));
  check_output(values, compute_dtype(A.dtype), per_angle(parameters.function) ? pairs * angles : pairs, device, op,
               "values");
  if (info) check_output(*info, DType::i32, pairs, device, op, "info");
}

inline void check_pairwise_angles_gradient(const TensorView& A, const TensorView& B, const TensorView& upstream,
                                           const TensorView& phi, const AngleParameters& parameters, Device device) {
  constexpr const char* op = "principal_angles";
  check_sets(A, B, device, op);
  const index_t pairs = batch_count(A, 3) * A.size(-3) * B.size(-3), angles = std::min(A.size(-1), B.size(-1));
  const DType dtype = compute_dtype(A.dtype);
  check_output(upstream, dtype, per_angle(parameters.function) ? pairs * angles : pairs, device, op, "upstream");
  check_output(phi, dtype, pairs * A.size(-1) * B.size(-1), device, op, "phi");
}

void pairwise_angles_cpu(const TensorView& A, const TensorView& B, const TensorView& values, const TensorView* info,
                         const AngleParameters& parameters, int threads);
void pairwise_angles_gradient_cpu(const TensorView& A, const TensorView& B, const TensorView& upstream,
                                  const TensorView& phi, const AngleParameters& parameters, int threads);

}  // namespace subspan
