// small_svd: M = U diag(values) V^T for many small matrices; values descend.
//   M (*batch, m, n) any strides; values (*batch, k), left (*batch, m, k) = U, right (*batch, k, n) = V^T with
//   k = min(m, n), packed, left and right on request, together; info (*batch) int32: 0, or 1 where the iteration
//   stopped before it had converged (values alone are NaN then).
// An item that is not finite is NaN.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_small_svd(const TensorView& M, const TensorView& values, const TensorView* left,
                            const TensorView* right, const TensorView* info, Device device) {
  constexpr const char* op = "small_svd";
  check_input(M, 2, device, op, "M");
  CHECK(is_float(M.dtype), op, ": M: expected a floating point array");
  const index_t items = batch_count(M, 2), rank = std::min(M.size(-2), M.size(-1));
  const DType dtype = compute_dtype(M.dtype);
  check_output(values, dtype, items * rank, device, op, "values");
  CHECK((left == nullptr) == (right == nullptr), op, ": left: expected with right, or neither");
  if (left) check_output(*left, dtype, items * M.size(-2) * rank, device, op, "left");
  if (right) check_output(*right, dtype, items * rank * M.size(-1), device, op, "right");
  if (info) check_output(*info, DType::i32, items, device, op, "info");
}

void small_svd_cpu(const TensorView& M, const TensorView& values, const TensorView* left, const TensorView* right,
                   const TensorView* info, int threads);
void small_svd_cuda(const TensorView& M, const TensorView& values, const TensorView* left, const TensorView* right,
                    const TensorView* info, void* stream);

// The longest longer side of a matrix with `rank` rows or columns on the shorter one that small_svd_cuda takes: 0
// beyond 32 of them.
std::int64_t small_svd_cuda_max_length(DType dtype, std::int64_t rank, int device);

}  // namespace subspan
