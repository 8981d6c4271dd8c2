// small_eigh: A = Q diag(values) Q^T for many small symmetric matrices; values ascend.
//   A (*batch, n, n) any strides, lower triangle read; values (*batch, n), vectors (*batch, n, n) = Q on request,
//   packed; info (*batch) int32: 0, or 1 where the iteration stopped before it had converged
//   (values alone are NaN then).
// An item that is not finite is NaN.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_small_eigh(const TensorView& A, const TensorView& values, const TensorView* vectors,
                             const TensorView* info, Device device) {
  constexpr const char* op = "small_eigh";
  check_input(A, 2, device, op, "A");
  CHECK(is_float(A.dtype), op, ": A: expected a floating point array");
  CHECK(A.size(-1) == A.size(-2), op, ": A: expected square matrices, got ", A.size(-2), " x ", A.size(-1));
  const index_t items = batch_count(A, 2), size = A.size(-1);
  check_output(values, compute_dtype(A.dtype), items * size, device, op, "values");
  if (vectors) check_output(*vectors, compute_dtype(A.dtype), items * size * size, device, op, "vectors");
  if (info) check_output(*info, DType::i32, items, device, op, "info");
}

void small_eigh_cpu(const TensorView& A, const TensorView& values, const TensorView* vectors, const TensorView* info,
                    int threads);
// Of matrices of order at most 32.
void small_eigh_cuda(const TensorView& A, const TensorView& values, const TensorView* vectors, const TensorView* info,
                     void* stream);

}  // namespace subspan
