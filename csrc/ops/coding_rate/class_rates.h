// Hard labels: the samples of each class, and one Gram problem per class.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"
#include "ops/coding_rate/gram_solver.h"

namespace subspan {

// Samples of one batch item sorted by class, stable: class j holds order[begin(j)] ... order[begin(j + 1) - 1].
class ClassOrder {
 public:
  // Throws where a label is outside 0 ... classes - 1.
  ClassOrder(const TensorView& labels, index_t item, index_t classes, const char* op, Workspace& workspace)
      : order_(workspace.take<index_t>(labels.size(-1))), begin_(workspace.take<index_t>(classes + 2)) {
    if (labels.dtype == DType::i64) {
      sort(static_cast<const std::int64_t*>(batch_item(labels, 1, item)), labels, classes, op);
    } else {
      sort(static_cast<const std::int32_t*>(batch_item(labels, 1, item)), labels, classes, op);
    }
  }
  const index_t* members(index_t j) const { return order_ + begin_[j]; }
  index_t count(index_t j) const { return begin_[j + 1] - begin_[j]; }

 private:
  template <class Label>
  void sort(const Label* label, const TensorView& labels, index_t classes, const char* op) {
    const index_t samples = labels.size(-1), step = labels.step(-1);
    std::fill(begin_, begin_ + classes + 2, index_t{0});
    for (index_t i = 0; i < samples; ++i) {
      const index_t j = label[i * step];
      CHECK(j >= 0 && j < classes, op, ": labels: expected values in 0 ... ", classes - 1, ", got ", j);
      ++begin_[j + 2];
    }
    for (index_t j = 2; j < classes + 2; ++j) begin_[j] += begin_[j - 1];
    for (index_t i = 0; i < samples; ++i) order_[begin_[label[i * step] + 1]++] = i;
  }

  index_t* order_;
  index_t* begin_;
};

// log det (I + d / (t_j eps2) Z_j^T Z_j) of class j; 0 for an empty class. Where a gradient is wanted, the class's rows
// receive coefficient(t_j, alpha_j) * z_i M_j.
template <class Coefficient>
double class_log_det(const GramProblem& all, const ClassOrder& order, index_t j, double eps2,
                     const GradientTarget* gradient, Coefficient&& coefficient, int threads) {
  GramProblem problem = all;
  problem.order = order.members(j);
  problem.samples = order.count(j);
  if (problem.samples == 0 || problem.features == 0) return 0;
  problem.alpha = static_cast<double>(problem.features) / (static_cast<double>(problem.samples) * eps2);
  GradientTarget target;
  if (gradient) {
    target = *gradient;
    target.coefficient = coefficient(static_cast<double>(problem.samples), problem.alpha);
  }
  return solve_gram(problem, gradient ? &target : nullptr, threads).log_det;
}

// body(class, threads) for every class: classes to threads where there are enough of them.
template <class Body>
void for_each_class(const GramProblem& all, index_t classes, bool gradient, int threads, Body&& body) {
  if (classes >= threads) {
    const double flops = all.flops(gradient) / static_cast<double>(classes);
    parallel_for(classes, useful_threads(flops, threads), [&](index_t j) { body(j, 1); });
  } else {
    for (index_t j = 0; j < classes; ++j) body(j, threads);
  }
}

inline void check_labels(const TensorView& Z, const TensorView& labels, Device device, const char* op) {
  check_input(Z, 2, device, op, "Z");
  CHECK(is_float(Z.dtype), op, ": Z: expected a floating point array");
  check_input(labels, 1, device, op, "labels");
  CHECK(labels.dtype == DType::i64 || labels.dtype == DType::i32, op, ": labels: expected int32 or int64");
  CHECK(labels.size(-1) == Z.size(-2) && batch_count(labels, 1) == batch_count(Z, 2), op,
        ": labels: expected one label per row of Z");
}

}  // namespace subspan
