// Soft membership: class j holds the part pi_ji >= 0 of sample i, has mass t_j = sum_i pi_ji and the log determinant
//
//   L_j = log det (I + alpha_j Z^T diag(pi_j) Z),   alpha_j = d / (t_j eps2),
//
// and adds a_j L_j to a value, where a_j may depend on t_j. With M_j the inverse of the matrix above and
// q_ji = alpha_j z_i M_j z_i, the gradients of the value are
//
//   d z_i   = 2 sum_j a_j alpha_j pi_ji z_i M_j
//   d pi_ji = a_j (q_ji - sum_l pi_jl q_jl / t_j) + da_j/dt_j L_j,
//
// the second term of which is the derivative through alpha_j. A class without mass adds nothing, and has no gradient.
#pragma once
#include "core/check_view.h"
#include "ops/coding_rate/gram_solver.h"

namespace subspan {

struct ClassTerm {
  double factor = 0;  // a_j
  double slope = 0;   // da_j / dt_j
};

// One batch item: what is given, and where results go.
template <class T>
struct SoftClasses {
  GramProblem all;
  Rows<T> membership;  // (classes, samples)
  index_t classes;
  double eps2;
  double* mass;               // (classes)
  ClassTerm* terms;           // (classes)
  double* log_det;            // (classes)
  T* d_Z = nullptr;           // (samples, features), added to; null: no gradient
  T* d_membership = nullptr;  // (classes, samples), written
  int threads = 1;

  bool gradient() const { return d_Z != nullptr; }
  double alpha(index_t j) const { return mass[j] == 0 ? 0 : static_cast<double>(all.features) / (mass[j] * eps2); }
  double row_factor(index_t j) const { return 2 * terms[j].factor * alpha(j); }
  Rows<T> rows() const { return {all.data, all.dtype, all.row_step, all.column_step}; }
};

// Three ways to the same numbers. Each sets log_det of the classes it is asked for and, where a gradient is wanted,
// adds to d_Z and leaves the energies z_i M_j z_i in row j of d_membership.

// Fewer samples than features: all classes share one Gram matrix Z Z^T. In float64.
template <class T>
void soft_classes_by_samples(const SoftClasses<T>& soft);

// Few classes: a Gram problem each, then all gradients in one pass over the samples.
template <class T>
void soft_classes_one_by_one(const SoftClasses<T>& soft, const index_t* chosen, index_t count);

// Many classes: all Gram matrices at once, as one product of the membership and the pairs z_a z_b of every sample,
// which are formed while packing. Both gradients are products of the same size.
template <class T>
void soft_classes_by_pairs(const SoftClasses<T>& soft);

}  // namespace subspan
