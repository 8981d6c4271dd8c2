// spd_logdet: log det A = sum_j log p_j over the pivots p_j of the Cholesky factorisation of A, and A^{-1} on request.
//   A (*batch, n, n) any strides, lower triangle read; logdet (*batch); inverse (*batch, n, n) packed; info (*batch)
//   int32.
// Not positive definite: logdet and inverse of that item are NaN, info is the 1-based index of the first bad pivot.
// With implicit_identity it is log det (I + A) and (I + A)^{-1} of a positive semidefinite A, the identity never added,
// see Pivot::kIdentity in core/small_matrix/pivot.h.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_spd_logdet(const TensorView& A, const TensorView& logdet, const TensorView* inverse,
                             const TensorView* info, Device device) {
  constexpr const char* op = "spd_logdet";
  check_input(A, 2, device, op, "A");
  CHECK(is_float(A.dtype), op, ": A: expected a floating point array");
  CHECK(A.size(-1) == A.size(-2), op, ": A: expected square matrices, got ", A.size(-2), " x ", A.size(-1));
  const std::int64_t items = batch_count(A, 2);
  check_output(logdet, compute_dtype(A.dtype), items, device, op, "logdet");
  if (inverse) check_output(*inverse, compute_dtype(A.dtype), A.numel(), device, op, "inverse");
  if (info) check_output(*info, DType::i32, items, device, op, "info");
}

void spd_logdet_cpu(const TensorView& A, const TensorView& logdet, const TensorView* inverse, const TensorView* info,
                    bool implicit_identity, int threads);
void spd_logdet_cuda(const TensorView& A, const TensorView& logdet, const TensorView* inverse, const TensorView* info,
                     bool implicit_identity, void* stream);

// The largest order that the shared memory of `device` holds; larger matrices are refused.
std::int64_t spd_logdet_cuda_max_size(DType dtype, int device);

}  // namespace subspan
