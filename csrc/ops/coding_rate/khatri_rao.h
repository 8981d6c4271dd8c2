// Products of features, so that the Gram matrices of k soft classes are one matrix product: with membership pi (k, n),
//   A_j = sum_i pi_ji z_i z_i^T,   packed(A) = pi KR,   KR (n, P), row i the packed triangle of z_i z_i^T.
// P = d (d + 1) / 2; core/triangle.h says in which order.
//   khatri_rao_pack:   Z (*batch, n, d) any strides, half types too -> products (*batch, n, P) packed.
//   khatri_rao_unpack: its adjoint. D_i the triangle in row i of d_products (*batch, n, P) packed, zero below the
//     diagonal: d_Z_i = (D_i + D_i^T) z_i, (*batch, n, d) packed. So the gradient of a diagonal entry is doubled here
//     and that of an entry off the diagonal is shared by its two features.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"
#include "core/triangle.h"

namespace subspan {

inline void check_khatri_rao(const TensorView& Z, Device device, const char* op) {
  check_input(Z, 2, device, op, "Z");
  CHECK(is_float(Z.dtype), op, ": Z: expected a floating point array");
}

inline std::int64_t khatri_rao_elements(const TensorView& Z) {
  return batch_count(Z, 2) * Z.size(-2) * triangle_size(Z.size(-1));
}

inline void check_khatri_rao_pack(const TensorView& Z, const TensorView& products, Device device) {
  constexpr const char* op = "khatri_rao_pack";
  check_khatri_rao(Z, device, op);
  check_output(products, compute_dtype(Z.dtype), khatri_rao_elements(Z), device, op, "products");
}

inline void check_khatri_rao_unpack(const TensorView& d_products, const TensorView& Z, const TensorView& d_Z,
                                    Device device) {
  constexpr const char* op = "khatri_rao_unpack";
  check_khatri_rao(Z, device, op);
  check_output(d_products, compute_dtype(Z.dtype), khatri_rao_elements(Z), device, op, "d_products");
  check_output(d_Z, compute_dtype(Z.dtype), Z.numel(), device, op, "d_Z");
}

void khatri_rao_pack_cuda(const TensorView& Z, const TensorView& products, void* stream);
void khatri_rao_unpack_cuda(const TensorView& d_products, const TensorView& Z, const TensorView& d_Z, void* stream);

// The most features that the shared memory of `device` holds for both; more are refused.
std::int64_t khatri_rao_cuda_max_features(DType dtype, int device);

}  // namespace subspan
