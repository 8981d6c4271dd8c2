// Coding rates of classes with soft membership, see soft_classes.h: four entries to one computation.
//   class_mass:              t_j = sum_i pi_ji.
//   soft_class_coding_rates: rates_j = L_j / 2.
//   soft_class_gradient:     the gradient of sum_j upstream_j L_j / 2.
//   soft_rate_reduction:     R - gamma sum_j t_j / (2n) L_j with R = 1/2 logdet(I + d / (n eps2) Z^T Z), and its
//   gradient. Z (*batch, n, d) any strides; membership (*batch, k, n) any strides, of the type computed in, >= 0; rates
//   and upstream
//   (*batch, k); delta (*batch); d_Z (*batch, n, d) and d_membership (*batch, k, n) packed, both or neither.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_soft(const TensorView& Z, const TensorView& membership, const TensorView* d_Z,
                       const TensorView* d_membership, Device device, const char* op) {
  check_input(Z, 2, device, op, "Z");
  CHECK(is_float(Z.dtype), op, ": Z: expected a floating point array");
  check_input(membership, 2, device, op, "labels");
  CHECK(membership.dtype == compute_dtype(Z.dtype), op, ": labels: expected the type that is computed in");
  CHECK(membership.size(-1) == Z.size(-2) && batch_count(membership, 2) == batch_count(Z, 2), op,
        ": labels: expected one column per row of Z");
  CHECK((d_Z == nullptr) == (d_membership == nullptr), op, ": d_membership: expected both gradients or neither");
  if (d_Z) check_output(*d_Z, compute_dtype(Z.dtype), Z.numel(), device, op, "d_Z");
  if (d_membership) check_output(*d_membership, membership.dtype, membership.numel(), device, op, "d_membership");
}

inline void check_per_class(const TensorView& rates, const TensorView& membership, Device device, const char* op,
                            const char* name) {
  check_output(rates, membership.dtype, batch_count(membership, 2) * membership.size(-2), device, op, name);
}

inline void check_upstream(const TensorView& upstream, const TensorView& membership, Device device, const char* op) {
  check_input(upstream, 1, device, op, "upstream");
  CHECK(upstream.dtype == membership.dtype, op, ": upstream: expected the type that is computed in");
  CHECK(upstream.size(-1) == membership.size(-2) && batch_count(upstream, 1) == batch_count(membership, 2), op,
        ": upstream: expected one value per class");
}

inline void check_class_mass(const TensorView& membership, const TensorView& mass, Device device) {
  constexpr const char* op = "class_coding_rates";
  check_input(membership, 2, device, op, "labels");
  CHECK(is_float(membership.dtype), op, ": labels: expected a floating point array");
  check_output(mass, compute_dtype(membership.dtype), batch_count(membership, 2) * membership.size(-2), device, op,
               "mass");
}

void class_mass_cpu(const TensorView& membership, const TensorView& mass, int threads);
void soft_class_coding_rates_cpu(const TensorView& Z, const TensorView& membership, const TensorView& rates,
                                 double eps2, int threads);
void soft_class_gradient_cpu(const TensorView& Z, const TensorView& membership, const TensorView& upstream,
                             const TensorView& d_Z, const TensorView& d_membership, double eps2, int threads);
void soft_rate_reduction_cpu(const TensorView& Z, const TensorView& membership, const TensorView& delta,
                             const TensorView* d_Z, const TensorView* d_membership, double eps2, double gamma,
                             int threads);

}  // namespace subspan
