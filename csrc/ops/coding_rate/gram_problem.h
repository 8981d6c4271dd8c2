// The computation that every coding rate is made of: for rows z_i with square-root weights r_i, Z' = diag(r) Z,
//
//   rate     = logdet(I + alpha Z'^T Z') = logdet(I + alpha Z' Z'^T)
//   gradient = coefficient * diag(r) (Z' M),  M = (I + alpha Z'^T Z')^{-1},  equally  coefficient * diag(r) (K^{-1} Z')
//
// in four steps: pack rows into panels, multiply to the Gram matrix of the smaller side, factor it with the identity
// kept implicit, and finish with the product that is the gradient.
#pragma once
#include "core/batch.h"

namespace subspan {

enum class Side { kAuto, kSamples, kFeatures };

struct GramProblem {
  const void* data = nullptr;
  DType dtype = DType::other;
  index_t row_step = 0, column_step = 0;
  const index_t* order = nullptr;        // sample i is row order[i]; null: row i
  const double* root_weights = nullptr;  // r_i; null: 1
  index_t samples = 0, features = 0;
  double alpha = 0;
  Side side = Side::kAuto;

  bool on_samples() const { return side == Side::kSamples || (side == Side::kAuto && samples < features); }
  index_t factored() const { return on_samples() ? samples : features; }
  index_t summed() const { return on_samples() ? features : samples; }

  // Gram matrix and factor; three times that with the gradient.
  double flops(bool gradient) const {
    const double size = static_cast<double>(factored());
    return (gradient ? 3 : 1) * size * size * (static_cast<double>(summed()) + size / 3);
  }
};

// The problem of one batch item of Z.
inline GramProblem gram_problem(const TensorView& Z, index_t item, double alpha = 0, Side side = Side::kAuto) {
  GramProblem problem;
  problem.data = batch_item(Z, 2, item);
  problem.dtype = Z.dtype;
  problem.row_step = Z.step(-2);
  problem.column_step = Z.step(-1);
  problem.samples = Z.size(-2);
  problem.features = Z.size(-1);
  problem.alpha = alpha;
  problem.side = side;
  return problem;
}

// Where a gradient goes: row i of the problem to row order[i] of a packed (n, d) array of float or double.
struct GradientTarget {
  void* data = nullptr;
  bool is_double = false;
  double coefficient = 1;
  bool add = false;
};

struct GramRate {
  double log_det = 0;
  std::int32_t clamped = 0;  // pivots clamped; -1 for input that is not finite
  bool promote = false;      // float64 is asked for; the rest is not to be used
};

}  // namespace subspan
