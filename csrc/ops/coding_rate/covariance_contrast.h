// covariance_contrast: <C', B> = 1/n sum_i z_i C' z_i with B = z^T z / n and C' = beta C + (1 - beta) B, the covariance
// contrast of TiCo (Zhu et al. 2022). The gradient to z is 2/n z (beta sym(C) + kappa (1 - beta) B), kappa = 1 where C'
// is held constant and 2 where the part of C' that is B is differentiated too.
//   z (*batch, n, d), C (*batch, d, d) any strides, C of the type computed in; contrast (*batch); covariance (*batch,
//   d, d) and d_z (*batch, n, d) packed.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

struct CovarianceParameters {
  double beta;
  bool detach_covariance;
};

inline void check_covariance_contrast(const TensorView& z, const TensorView& C, const TensorView& contrast,
                                      const TensorView* covariance, const TensorView* d_z, Device device) {
  constexpr const char* op = "covariance_contrast";
  check_input(z, 2, device, op, "z");
  CHECK(is_float(z.dtype), op, ": z: expected a floating point array");
  check_input(C, 2, device, op, "C");
  CHECK(C.dtype == compute_dtype(z.dtype), op, ": C: expected the type that is computed in");
  CHECK(C.size(-1) == z.size(-1) && C.size(-2) == z.size(-1) && batch_count(C, 2) == batch_count(z, 2), op,
        ": C: expected a d x d matrix per item");
  const std::int64_t items = batch_count(z, 2);
  check_output(contrast, C.dtype, items, device, op, "contrast");
  if (covariance) check_output(*covariance, C.dtype, items * z.size(-1) * z.size(-1), device, op, "covariance");
  if (d_z) check_output(*d_z, C.dtype, z.numel(), device, op, "d_z");
}

void covariance_contrast_cpu(const TensorView& z, const TensorView& C, const TensorView& contrast,
                             const TensorView* covariance, const TensorView* d_z,
                             const CovarianceParameters& parameters, int threads);

}  // namespace subspan
