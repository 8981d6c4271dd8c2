// rate_reduction: R - gamma R_c with R = 1/2 logdet(I + d / (n eps2) Z^T Z) and R_c = sum_j t_j / (2n) logdet(I + d /
// (t_j eps2) Z_j^T Z_j), Yu et al. 2020 (MCR2), for hard labels.
//   Z (*batch, n, d) any strides; labels (*batch, n) int32 or int64 in 0 ... classes - 1; delta (*batch); d_Z (*batch,
//   n, d) packed.
#pragma once
#include "core/check_view.h"
#include "ops/coding_rate/class_rates.h"

namespace subspan {

inline void check_rate_reduction(const TensorView& Z, const TensorView& labels, const TensorView& delta,
                                 const TensorView* d_Z, Device device) {
  constexpr const char* op = "rate_reduction";
  check_labels(Z, labels, device, op);
  check_output(delta, compute_dtype(Z.dtype), batch_count(Z, 2), device, op, "delta");
  if (d_Z) check_output(*d_Z, compute_dtype(Z.dtype), Z.numel(), device, op, "d_Z");
}

void rate_reduction_cpu(const TensorView& Z, const TensorView& labels, const TensorView& delta, const TensorView* d_Z,
                        double eps2, index_t classes, double gamma, int threads);

}  // namespace subspan
