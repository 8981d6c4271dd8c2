#include "ops/coding_rate/coding_rate.h"
#include "ops/coding_rate/gram_solver.h"

namespace subspan {
namespace {

// Square roots of one item's weights, their sum, and the gradient that flows to them.
template <class T>
class Weights {
 public:
  Weights(const TensorView& weights, index_t item, bool gradient, Workspace& workspace)
      : values_(static_cast<const T*>(batch_item(weights, 1, item))),
        step_(weights.step(-1)),
        count_(weights.size(-1)) {
    roots_ = workspace.take<double>(count_);
    double largest = 0;
    for (index_t i = 0; i < count_; ++i) {
      roots_[i] = std::sqrt(static_cast<double>(value(i)));
      largest = std::max(largest, roots_[i]);
      sum_ += static_cast<double>(value(i));
    }
    // The gradient divides by the weight. A weight of zero gets a stand-in far below rounding of the others, so that
    // the row's share of the product keeps its relative accuracy.
    const double least = gradient ? (largest > 0 ? 1e-8 * largest : 1e-15) : 0;
    for (index_t i = 0; i < count_; ++i) roots_[i] = std::max(roots_[i], least);
    // max() above drops a NaN on its left side only; an invalid weight must reach the result.
    for (index_t i = 0; i < count_; ++i) {
      if (!(value(i) >= 0)) roots_[i] = NAN;
    }
  }

  double sum() const { return sum_; }
  const double* roots() const { return roots_; }

  // On entry d_Z row i is 2 scale alpha r_i^2 z_i M. With q_i = z_i M z_i the weight's gradient is
  // scale (alpha q_i - sum_l alpha w_l q_l / sum_l w_l), the last term only where alpha follows the weights.
  void backward(const Rows<T>& rows, index_t features, bool alpha_follows, T* d_Z, T* d_weights,
                Workspace& workspace) const {
    T* scratch = workspace.take<T>(features);
    double total = 0;
    for (index_t i = 0; i < count_; ++i) {
      const T* z = rows.read(i, 0, features, scratch);
      T* d_z = d_Z + i * features;
      double dot = 0;
      for (index_t j = 0; j < features; ++j) dot += static_cast<double>(z[j]) * static_cast<double>(d_z[j]);
      const double used = roots_[i] * roots_[i];
      const double share = dot / (2 * used);  // scale alpha q_i
      d_weights[i] = static_cast<T>(share);
      total += static_cast<double>(value(i)) * share;
      if (value(i) == 0) std::fill(d_z, d_z + features, T(0));
    }
    if (!alpha_follows) return;
    for (index_t i = 0; i < count_; ++i) d_weights[i] -= static_cast<T>(total / sum_);
  }

 private:
  T value(index_t i) const { return values_[i * step_]; }

  const T* values_;
  index_t step_, count_;
  double* roots_ = nullptr;
  double sum_ = 0;
};

template <class T>
struct Call {
  const TensorView& Z;
  const TensorView* weights;
  T* rate;
  std::int32_t* info;
  T* d_Z;
  T* d_weights;
  const CodingRateParameters& parameters;

  void item(index_t item, int threads) const {
    Workspace workspace;
    GramProblem problem = gram_problem(Z, item, 0, parameters.side);
    if (weights) {
      const Weights<T> used(*weights, item, d_weights != nullptr, workspace);
      problem.root_weights = used.roots();
      solve(problem, item, used.sum(), threads, &used, workspace);
    } else {
      solve(problem, item, static_cast<double>(problem.samples), threads, nullptr, workspace);
    }
  }

  void solve(GramProblem& problem, index_t item, double mass, int threads, const Weights<T>* used,
             Workspace& workspace) const {
    const index_t elements = problem.samples * problem.features;
    T* gradient = d_Z ? d_Z + item * elements : nullptr;
    T* weight_gradient = d_weights ? d_weights + item * problem.samples : nullptr;
    const bool alpha_follows = parameters.alpha == 0;
    problem.alpha = alpha_follows ? static_cast<double>(problem.features) / (mass * parameters.eps2) : parameters.alpha;
    if (elements == 0 || (alpha_follows && mass == 0)) {  // no sample has any weight: the rate of nothing is 0
      rate[item] = 0;
      if (info) info[item] = 0;
      if (gradient) std::fill(gradient, gradient + elements, T(0));
      if (weight_gradient) std::fill(weight_gradient, weight_gradient + problem.samples, T(0));
      return;
    }
    GradientTarget target;
    target.data = gradient;
    target.is_double = sizeof(T) == 8;
    target.coefficient = 2 * parameters.scale * problem.alpha;
    const GramRate result = solve_gram(problem, gradient ? &target : nullptr, threads);
    rate[item] = static_cast<T>(parameters.scale * result.log_det);
    if (info) info[item] = result.clamped;
    if (weight_gradient) {
      used->backward(Rows<T>(problem.data, problem.dtype, problem.row_step, problem.column_step), problem.features,
                     alpha_follows, gradient, weight_gradient, workspace);
    }
  }
};

template <class T>
void check_weights(const TensorView& weights) {
  const index_t count = weights.size(-1);
  for (index_t item = 0; item < batch_count(weights, 1); ++item) {
    const T* values = static_cast<const T*>(batch_item(weights, 1, item));
    for (index_t i = 0; i < count; ++i) {
      const T value = values[i * weights.step(-1)];
      CHECK(!(value < 0), "coding_rate: weights: expected nonnegative values, got ", value);
    }
  }
}

}  // namespace

void coding_rate_cpu(const TensorView& Z, const TensorView* weights, const TensorView& rate, const TensorView* info,
                     const TensorView* d_Z, const TensorView* d_weights, const CodingRateParameters& parameters,
                     int threads) {
  dispatch_float(compute_dtype(Z.dtype), "coding_rate", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (weights) check_weights<T>(*weights);
    const Call<T> call{Z,
                       weights,
                       rate.ptr<T>(),
                       info ? info->ptr<std::int32_t>() : nullptr,
                       d_Z ? d_Z->ptr<T>() : nullptr,
                       d_weights ? d_weights->ptr<T>() : nullptr,
                       parameters};
    for_each_item(Z, d_Z != nullptr, threads, [&](index_t item, int team) { call.item(item, team); });
  });
}

}  // namespace subspan
