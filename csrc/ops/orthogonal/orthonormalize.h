// orthonormalize: A = Q R with R upper triangular and a diagonal that is not negative ("qr"), or A = Q H with H
// symmetric positive semidefinite ("polar").
//   A (*batch, n, k) with n >= k, or (*batch, k, n) with `rows`; any strides and any floating point type. Q: as A,
//   packed; triangle (*batch, k, k), R or H, packed; info (*batch) int32: 0; for dependent columns the 1-based index of
//   the first in the span of those before it, to rounding, for H the number of singular values that are zero to
//   rounding; -1 where A is not finite, and then Q and the triangle are NaN.
//   Where a column is in the span of those before it R has a diagonal entry of exactly 0, and Q is orthonormal all the
//   same.
// orthonormalize_gradient: from Q, the triangle, and upstream gradients of both, each of which may be absent,
//   QR     (dQ + Q C) R^-T,  C = tril(M, -1) + tril(M, -1)^T + diag(M),  M = R dR^T - dQ^T Q
//   polar  (dQ - Q Q^T dQ) H^-1 + Q (Z + 2 H Y),  H Z + Z H = Q^T dQ - dQ^T Q,  H Y + Y H = (dH + dH^T) / 2
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_frame(const TensorView& A, bool rows, Device device, const char* op, const char* name) {
  check_input(A, 2, device, op, name);
  CHECK(is_float(A.dtype), op, ": ", name, ": expected a floating point array");
  CHECK(A.size(rows ? -1 : -2) >= A.size(rows ? -2 : -1), op, ": ", name, ": expected no more columns than rows");
}

inline void check_like(const TensorView& view, const TensorView& like, Device device, const char* op,
                       const char* name) {
  check_input(view, 2, device, op, name);
  CHECK(is_float(view.dtype), op, ": ", name, ": expected a floating point array");
  CHECK(
      view.size(-1) == like.size(-1) && view.size(-2) == like.size(-2) && batch_count(view, 2) == batch_count(like, 2),
      op, ": ", name, ": wrong shape");
}

inline void check_orthonormalize(const TensorView& A, const TensorView& Q, const TensorView* triangle,
                                 const TensorView* info, bool rows, Device device) {
  constexpr const char* op = "orthonormalize";
  check_frame(A, rows, device, op, "A");
  const index_t items = batch_count(A, 2), count = A.size(rows ? -2 : -1);
  check_output(Q, compute_dtype(A.dtype), A.numel(), device, op, "Q");
  check_like(Q, A, device, op, "Q");
  if (triangle) check_output(*triangle, compute_dtype(A.dtype), items * count * count, device, op, "triangle");
  if (info) check_output(*info, DType::i32, items, device, op, "info");
}

inline void check_orthonormalize_gradient(const TensorView& Q, const TensorView& triangle, const TensorView* d_Q,
                                          const TensorView* d_triangle, const TensorView& d_A, bool rows,
                                          Device device) {
  constexpr const char* op = "orthonormalize_gradient";
  check_frame(Q, rows, device, op, "Q");
  const index_t count = Q.size(rows ? -2 : -1);
  check_input(triangle, 2, device, op, "triangle");
  CHECK(is_float(triangle.dtype), op, ": triangle: expected a floating point array");
  CHECK(triangle.size(-1) == count && triangle.size(-2) == count && batch_count(triangle, 2) == batch_count(Q, 2), op,
        ": triangle: wrong shape");
  if (d_Q) check_like(*d_Q, Q, device, op, "d_Q");
  if (d_triangle) check_like(*d_triangle, triangle, device, op, "d_triangle");
  check_output(d_A, compute_dtype(Q.dtype), Q.numel(), device, op, "d_A");
  check_like(d_A, Q, device, op, "d_A");
}

void orthonormalize_cpu(const TensorView& A, const TensorView& Q, const TensorView* triangle, const TensorView* info,
                        bool polar, bool rows, int threads);
void orthonormalize_gradient_cpu(const TensorView& Q, const TensorView& triangle, const TensorView* d_Q,
                                 const TensorView* d_triangle, const TensorView& d_A, bool polar, bool rows,
                                 int threads);

}  // namespace subspan
