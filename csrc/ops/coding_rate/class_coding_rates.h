// class_coding_rates: rates[j] = 1/2 logdet(I + d / (t_j eps2) Z_j^T Z_j) over the t_j samples labelled j, and mass[j]
// = t_j.
//   Z (*batch, n, d) any strides; labels (*batch, n) int32 or int64 in 0 ... k - 1; rates, mass (*batch, k) packed.
//   d_Z (*batch, n, d): row i is the gradient of rates[labels[i]].
#pragma once
#include "core/check_view.h"
#include "ops/coding_rate/class_rates.h"

namespace subspan {

inline void check_class_coding_rates(const TensorView& Z, const TensorView& labels, const TensorView& rates,
                                     const TensorView& mass, const TensorView* d_Z, index_t classes, Device device) {
  constexpr const char* op = "class_coding_rates";
  check_labels(Z, labels, device, op);
  const std::int64_t elements = batch_count(Z, 2) * classes;
  check_output(rates, compute_dtype(Z.dtype), elements, device, op, "rates");
  check_output(mass, compute_dtype(Z.dtype), elements, device, op, "mass");
  if (d_Z) check_output(*d_Z, compute_dtype(Z.dtype), Z.numel(), device, op, "d_Z");
}

void class_coding_rates_cpu(const TensorView& Z, const TensorView& labels, const TensorView& rates,
                            const TensorView& mass, const TensorView* d_Z, double eps2, index_t classes, int threads);

}  // namespace subspan
