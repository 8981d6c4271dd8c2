// The factor of I + B for B = alpha * Gram, its log determinant and its inverse, for one item and a team of threads.
#pragma once
#include "core/small_matrix/inverse.h"
#include "ops/coding_rate/gram_problem.h"

namespace subspan {

// A float32 item is computed again in float64 where float32 cannot hold it: above this trace of B ...
constexpr double kPromotionTrace = 1e4;
// ... or where rounding is estimated to cost more than this fraction of the log determinant. Entry j of the diagonal is
// rounded by 2^-24 B_jj and its pivot p_j carries that into log p_j as 2^-24 B_jj / p_j. On features that span their
// space pivots are as large as the diagonal and the sum is tiny; on collapsed ones p_j is about 1. The true error was
// measured at up to five times the estimate, so this keeps it below 1e-5.
constexpr double kPromotionError = 2e-6;

template <class T>
class GramFactor {
 public:
  GramFactor(index_t size, bool inverse, Workspace& workspace)
      : factor_(Factor<T>::take(size, workspace)), diagonal_(workspace.take<T>(size)) {
    const Panels<T>& lower = factor_.lower;
    if (inverse) work_ = {workspace.take<T>(panel_elements<T>(lower.depth, size)), lower.depth, lower.width};
  }

  // Where B goes, as the micro-kernel forms it: at(k, i) for k <= i. Holds the factor, then the inverse.
  const Panels<T>& matrix() const { return factor_.lower; }
  index_t size() const { return factor_.size; }

  // The steps below are run by every member of the team; `result` is complete when all have returned.

  // Factor and log determinant. False where the item must be promoted to float64.
  bool factor(GramRate& result, Team team = Team()) const {
    constexpr bool may_promote = sizeof(T) == 4;
    if (may_promote && trace() > kPromotionTrace) {
      if (team.rank() == 0) result.promote = true;
      return false;
    }
    if (may_promote && team.rank() == 0) {
      for (index_t i = 0; i < factor_.size; ++i) diagonal_[i] = *factor_.lower.at(i, i);
    }
    PivotLog<double, double, Pivot::kIdentity> log;
    cholesky(factor_, log, team);
    if (team.rank() == 0) {
      result.log_det = log.log();
      result.clamped = static_cast<std::int32_t>(log.info());
      result.promote = may_promote && rounding_estimate() > kPromotionError * result.log_det;
    }
    team.barrier();
    return !result.promote;
  }

  // (I + B)^{-1}, full and symmetric, in matrix().
  const Panels<T>& invert(Team team = Team()) const {
    inverse(factor_, work_, factor_.lower, team);
    return factor_.lower;
  }
  // The same without entries below the diagonal.
  const Panels<T>& invert_upper(Team team = Team()) const {
    inverse_upper(factor_, work_, factor_.lower, team);
    return factor_.lower;
  }

 private:
  // Sum of B_jj / p_j in units of float32's rounding.
  double rounding_estimate() const {
    double sum = 0;
    for (index_t i = 0; i < factor_.size; ++i) {
      const double reciprocal = static_cast<double>(factor_.reciprocal(i / kTileRows)[i % kTileRows]);
      sum += static_cast<double>(diagonal_[i]) * reciprocal * reciprocal;
    }
    return sum * 0x1p-24;
  }

  double trace() const {
    double sum = 0;
    for (index_t i = 0; i < factor_.size; ++i) sum += static_cast<double>(*factor_.lower.at(i, i));
    return sum;
  }

  Factor<T> factor_;
  T* diagonal_;  // of B
  Panels<T> work_;
};

}  // namespace subspan
