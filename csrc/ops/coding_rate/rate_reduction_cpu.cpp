#include <atomic>

#include "ops/coding_rate/rate_reduction.h"

namespace subspan {
namespace {

template <class T>
void run(const TensorView& Z, const TensorView& labels, const TensorView& delta, const TensorView* d_Z, double eps2,
         index_t classes, double gamma, int threads) {
  const index_t elements = Z.size(-1) * Z.size(-2);
  const double samples = static_cast<double>(Z.size(-2));
  for_each_item(Z, d_Z != nullptr, threads, [&](index_t index, int team) {
    Workspace workspace;
    const ClassOrder order(labels, index, classes, "rate_reduction", workspace);
    if (elements == 0) {
      delta.ptr<T>()[index] = 0;
      return;
    }
    const GramProblem all = gram_problem(Z, index, static_cast<double>(Z.size(-1)) / (samples * eps2));
    GradientTarget gradient;
    gradient.data = d_Z ? d_Z->ptr<T>() + index * elements : nullptr;
    gradient.is_double = sizeof(T) == 8;
    gradient.coefficient = all.alpha;
    const GradientTarget* wanted = d_Z ? &gradient : nullptr;
    double result = 0.5 * solve_gram(all, wanted, team).log_det;
    // The gradient of t_j / (2n) logdet_j is t_j / n alpha_j z_i M_j; it is added to that of the whole.
    gradient.add = true;
    double* log_det = workspace.take<double>(classes);
    const double share = gamma / samples;
    const auto coefficient = [share](double mass, double alpha) { return -share * mass * alpha; };
    for_each_class(all, classes, d_Z != nullptr, team, [&](index_t j, int threads_of_class) {
      log_det[j] = class_log_det(all, order, j, eps2, wanted, coefficient, threads_of_class);
    });
    for (index_t j = 0; j < classes; ++j) {
      result -= 0.5 * share * static_cast<double>(order.count(j)) * log_det[j];
    }
    delta.ptr<T>()[index] = static_cast<T>(result);
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
