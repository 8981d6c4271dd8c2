// Inverses of symmetric positive definite matrices that are too large for lanes, and an estimate of norms.
#pragma once
#include "core/small_matrix/gram_schmidt.h"
#include "core/small_matrix/inverse.h"
#include "ops/orthogonal/frame.h"

namespace subspan {

class DenseInverse {
 public:
  DenseInverse(index_t count, Workspace& workspace) : factor_(Factor<double>::take(count, workspace)) {
    for (Panels<double>* panels : {&half_, &inverse_}) {
      *panels = {workspace.take<double>(panel_elements<double>(factor_.lower.depth, count)), factor_.lower.depth,
                 factor_.lower.width};
    }
    for (index_t c = count; c < factor_.lower.depth; ++c) {
      for (index_t p = 0; p * factor_.lower.width < count; ++p)
        std::fill_n(factor_.lower.at(c, p * factor_.lower.width), factor_.lower.width, 0.0);
    }
  }

  // to = (A + shift I)^-1 from the upper triangle of A; NaN where that is not positive definite.
  void run(const Dense& A, double shift, const Dense& to) {
    const index_t count = factor_.size, width = factor_.lower.width;
    for (index_t i = 0; i < count; ++i) {
      for (index_t first = i / width * width; first < count; first += width)
        std::copy_n(A.row(i) + first, std::min(width, count - first), factor_.lower.at(i, first));
      *factor_.lower.at(i, i) += shift;
    }
    PivotLog<double, double, Pivot::kPlain> log;
    cholesky<Pivot::kPlain>(factor_, log);
    inverse(factor_, half_, inverse_);
    for (index_t i = 0; i < count; ++i) {
      for (index_t first = 0; first < count; first += width)
        std::copy_n(inverse_.at(i, first), std::min(width, count - first), to.row(i) + first);
    }
  }

 private:
  Factor<double> factor_;
  Panels<double> half_, inverse_;
};

// The largest singular value, from below and within some percent, by the power method.
inline double norm_estimate(const Dense& A, index_t count) {
  constexpr index_t lanes = kLanes<double>;
  Workspace workspace;
  const index_t padded = round_up(count, lanes);
  double *x = workspace.take<double>(padded), *y = workspace.take<double>(padded);
  for (index_t j = 0; j < padded; ++j) x[j] = j < count ? 1 + 0.37 * static_cast<double>(j % 5) : 0;
  double norm = 0;
  for (int step = 0; step < 8; ++step) {
    Vec<double> length{};
    for (index_t j = 0; j < padded; j += lanes) length += load(x + j) * load(x + j);
    const double unit = 1 / std::sqrt(sum_lanes(length));
    for (index_t j = 0; j < padded; j += lanes) {
      store(x + j, load(x + j) * unit);
      store(y + j, Vec<double>{});
    }
    double image = 0;
    for (index_t i = 0; i < count; ++i) {
      Vec<double> sums{};
      for (index_t j = 0; j < padded; j += lanes) sums += load(A.row(i) + j) * load(x + j);
      const double sum = sum_lanes(sums);
      image += sum * sum;
      for (index_t j = 0; j < padded; j += lanes) store(y + j, load(y + j) + sum * load(A.row(i) + j));
    }
    norm = std::sqrt(image);
    std::swap(x, y);
  }
  return norm;
}

}  // namespace subspan
