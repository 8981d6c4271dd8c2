// orthonormal_basis: A = Q R with orthonormal columns in Q, by Gram and Schmidt's process in float64.
//   A (*batch, n, k) any strides; Q (*batch, n, k), triangle (*batch, k, k) = R, upper, packed; info (*batch) int32:
//   the rank, or -1 for an item that is not finite, which is NaN.
// A column in the span of those before it, to rank_tol times its norm, is zero in Q, and so is its diagonal entry of R.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_orthonormal_basis(const TensorView& A, const TensorView& Q, const TensorView* triangle,
                                    const TensorView* info, Device device) {
  constexpr const char* op = "orthonormal_basis";
  check_input(A, 2, device, op, "A");
  CHECK(is_float(A.dtype), op, ": A: expected a floating point array");
  const index_t items = batch_count(A, 2), columns = A.size(-1);
  check_output(Q, compute_dtype(A.dtype), A.numel(), device, op, "Q");
  if (triangle) check_output(*triangle, compute_dtype(A.dtype), items * columns * columns, device, op, "triangle");
  if (info) check_output(*info, DType::i32, items, device, op, "info");
}

void orthonormal_basis_cpu(const TensorView& A, const TensorView& Q, const TensorView* triangle, const TensorView* info,
                           double rank_tol, int threads);

}  // namespace subspan
