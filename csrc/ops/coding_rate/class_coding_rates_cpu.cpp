#include "ops/coding_rate/class_coding_rates.h"

namespace subspan {
namespace {

template <class T>
void run(const TensorView& Z, const TensorView& labels, const TensorView& rates, const TensorView& mass,
         const TensorView* d_Z, double eps2, index_t classes, int threads) {
  const index_t elements = Z.size(-1) * Z.size(-2);
  for_each_item(Z, d_Z != nullptr, threads, [&](index_t item, int team) {
    Workspace workspace;
    const ClassOrder order(labels, item, classes, "class_coding_rates", workspace);
    double* log_det = workspace.take<double>(classes);
    GradientTarget gradient;
    gradient.data = d_Z ? d_Z->ptr<T>() + item * elements : nullptr;
    gradient.is_double = sizeof(T) == 8;
    const GramProblem all = gram_problem(Z, item);
    for_each_class(all, classes, d_Z != nullptr, team, [&](index_t j, int threads_of_class) {
      log_det[j] = class_log_det(
          all, order, j, eps2, d_Z ? &gradient : nullptr, [](double, double alpha) { return alpha; }, threads_of_class);
    });
    for (index_t j = 0; j < classes; ++j) {
      rates.ptr<T>()[item * classes + j] = static_cast<T>(0.5 * log_det[j]);
      mass.ptr<T>()[item * classes + j] = static_cast<T>(order.count(j));
    }
  });
}

}  // namespace

void class_coding_rates_cpu(const TensorView& Z, const TensorView& labels, const TensorView& rates,
                            const TensorView& mass, const TensorView* d_Z, double eps2, index_t classes, int threads) {
  dispatch_float(compute_dtype(Z.dtype), "class_coding_rates", [&](auto tag) {
    run<typename decltype(tag)::type>(Z, labels, rates, mass, d_Z, eps2, classes, threads);
  });
}

}  // namespace subspan
