#include <atomic>

#include "ops/coding_rate/rate_reduction.h"

namespace subspan {
namespace {

// One batch item: the whole and its classes, and where their gradients go.
struct Item {
  const GramProblem& all;
  const ClassOrder& order;
  index_t classes;
  double eps2, gamma;
  double* log_det;  // of each class
  const GradientTarget* gradient;

  // The gradient of t_j / (2n) logdet_j is t_j / n alpha_j z_i M_j; it is added to that of the whole.
  void solve_class(index_t j, int threads) const {
    GradientTarget added;
    if (gradient) added = *gradient;
    added.add = true;
    const double share = gamma / static_cast<double>(all.samples);
    log_det[j] = class_log_det(
        all, order, j, eps2, gradient ? &added : nullptr,
        [share](double mass, double alpha) { return -share * mass * alpha; }, threads);
  }

  // The whole, then the classes.
  double separately(int threads) const {
    const double whole = solve_gram(all, gradient, threads).log_det;
    for_each_class(all, classes, gradient != nullptr, threads, [&](index_t j, int team) { solve_class(j, team); });
    return whole;
  }

  // With many classes: after the whole is factored, members take some classes at a time and finish their samples, first
  // the gradient of the whole, then that of their class while the rows are still in cache.
  double by_classes(int threads) const {
    const index_t step = classes_at_once();
    std::atomic<index_t> next{0};
    const auto finish = [&](const auto& solver, Team team) {
      solver.invert(team);
      for (;;) {
        const index_t first = next.fetch_add(step);
        if (first >= classes) return;
        const index_t last = std::min(classes, first + step);
        const index_t count = order.members(last) - order.members(first);
        solver.gradient_of(*gradient, order.members(first), count);
        for (index_t j = first; j < last; ++j) solve_class(j, 1);
      }
    };
    return with_solver(all, true, threads, finish).log_det;
  }

  // Some strips of samples, which stay in the second-level cache with their gradients.
  index_t classes_at_once() const {
    constexpr index_t samples = 160;
    return std::max<index_t>(1, samples * classes / std::max<index_t>(all.samples, 1));
  }
  bool many_classes(int threads) const { return classes >= 4 * threads * classes_at_once() && !all.on_samples(); }
};

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
    const Item item{all, order, classes, eps2, gamma, workspace.take<double>(classes), d_Z ? &gradient : nullptr};
    double result = 0.5 * (d_Z && item.many_classes(team) ? item.by_classes(team) : item.separately(team));
    for (index_t j = 0; j < classes; ++j) {
      result -= gamma * 0.5 * static_cast<double>(order.count(j)) / samples * item.log_det[j];
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
