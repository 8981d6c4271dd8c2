// packed_logdet: log det (I + c_j A_j) of positive semidefinite A_j given by their packed triangles (core/triangle.h),
// the identity never added (Pivot::kIdentity in core/small_matrix/pivot.h), and on request the gradient by the entries
// of the triangle of c_j A_j: with M_j = (I + c_j A_j)^{-1} that is M_aa on the diagonal and 2 M_ab off it, because an
// entry off the diagonal stands for two.
//   packed (*batch, P) packed, P = d (d + 1) / 2; scale (*batch) packed, c; logdet (*batch); info (*batch) int32, -1
//   for an item that is not finite, else the number of pivots clamped to zero; gradient (*batch, P) packed.
// The doubled entries make sums over a triangle those over the matrix: <gradient_j, packed(B)> = tr(M_j B) for any
// symmetric B. `gradient` may be the memory of `packed`: a matrix is read before it is overwritten.
#pragma once
#include "core/check_view.h"
#include "core/triangle.h"

namespace subspan {

inline void check_packed_logdet(const TensorView& packed, const TensorView& scale, const TensorView& logdet,
                                const TensorView* info, const TensorView* gradient, Device device) {
  constexpr const char* op = "packed_logdet";
  check_input(packed, 1, device, op, "packed");
  CHECK(is_float(packed.dtype), op, ": packed: expected a floating point array");
  CHECK(triangle_order(packed.size(-1)) >= 0, op, ": packed: expected triangles of d (d + 1) / 2 entries, got ",
        packed.size(-1));
  CHECK(packed.numel() == 0 || is_packed(packed), op, ": packed: expected a packed array");
  std::int64_t items = 1;
  for (int i = 0; i < packed.ndim - 1; ++i) items *= packed.shape[i];
  check_output(scale, packed.dtype, items, device, op, "scale");
  check_output(logdet, packed.dtype, items, device, op, "logdet");
  if (info) check_output(*info, DType::i32, items, device, op, "info");
  if (gradient) check_output(*gradient, packed.dtype, packed.numel(), device, op, "gradient");
}

void packed_logdet_cuda(const TensorView& packed, const TensorView& scale, const TensorView& logdet,
                        const TensorView* info, const TensorView* gradient, void* stream);

// The largest order d that the shared memory of `device` holds; larger matrices are refused.
std::int64_t packed_logdet_cuda_max_size(DType dtype, int device);

}  // namespace subspan
