#include "ops/coding_rate/rate_reduction.h"

namespace subspan {
namespace {

template <class T>
void run(const TensorView& Z, const TensorView& labels, const TensorView& delta, const TensorView* d_Z, double eps2,
         index_t classes, double gamma, int threads) {
  const index_t elements = Z.size(-1) * Z.size(-2);
  const double samples = static_cast<double>(Z.size(-2));
  const double features = static_cast<double>(Z.size(-1));
  for_each_item(Z, d_Z != nullptr, threads, [&](index_t item, int team) {
    Workspace workspace;
    const ClassOrder order(labels, item, classes, "rate_reduction", workspace);
    double* log_det = workspace.take<double>(classes);
    if (elements == 0) {
      delta.ptr<T>()[item] = 0;
      return;
    }
    GradientTarget gradient;
    gradient.data = d_Z ? d_Z->ptr<T>() + item * elements : nullptr;
    gradient.is_double = sizeof(T) == 8;
    const GradientTarget* wanted = d_Z ? &gradient : nullptr;
    const GramProblem all = gram_problem(Z, item, features / (samples * eps2));
    gradient.coefficient = all.alpha;
    double result = 0.5 * solve_gram(all, wanted, team).log_det;
    // The gradient of t_j / (2n) logdet is t_j / n alpha_j z_i M_j; it is added to that of the whole.
    gradient.add = true;
    class_log_dets(
        all, order, classes, eps2, log_det, wanted,
        [&](double mass, double alpha) { return -gamma * mass / samples * alpha; }, team);
    for (index_t j = 0; j < classes; ++j) {
      result -= gamma * 0.5 * static_cast<double>(order.count(j)) / samples * log_det[j];
    }
    delta.ptr<T>()[item] = static_cast<T>(result);
  });
}

}  // namespace

void rate_reduction_cpu(const TensorView& Z, const TensorView& labels, const TensorView& delta, const TensorView* d_Z,
                        double eps2, index_t classes, double gamma, int threads) {
  dispatch_float(compute_dtype(Z.dtype), "rate_reduction", [&](auto tag) {
    run<typename decltype(tag)::type>(Z, labels, delta, d_Z, eps2, classes, gamma, threads);
  });
}

}  // namespace subspan
