// G^-1/2 of small symmetric positive definite matrices in float64.
//   The coupled iteration of Newton and Schulz, Y_0 = G / c, Z_0 = I, T = (3 I - Z Y) / 2, Y <- Y T, Z <- T Z, whose Z
//   converges to (G / c)^-1/2 for eigenvalues of G / c in (0, 3) and in this form does not amplify rounding (Higham
//   2008, Functions of Matrices, section 6.4). Products alone; an eigenvalue of a part l of the largest takes
//   log(l) / log(4 / 9) steps more.
#pragma once
#include "core/small_matrix/square.h"

namespace subspan {

class InverseRoot {
 public:
  InverseRoot(index_t size, Workspace& workspace)
      : result(Square::take(size, workspace)),
        root_(Square::take(size, workspace)),
        factor_(Square::take(size, workspace)),
        work_(Square::take(size, workspace)) {}

  // NaN where G is not finite, or not positive definite to rounding.
  void run(const Square& G) {
    const double bound = row_sum_norm(G), nan = std::numeric_limits<double>::quiet_NaN();
    if (!(bound > 0 && bound <= std::numeric_limits<double>::max())) return fill(nan);
    std::fill_n(result.data(), result.elements(), 0.0);
    add_to_diagonal(result, 1);
    for (index_t i = 0; i < G.elements(); ++i) root_.data()[i] = G.data()[i] / bound;
    double distance = 1;
    bool settled = false;
    for (int step = 0; step < kMostSteps && !settled; ++step) {
      multiply_into(factor_, result, root_);  // what it multiplies is symmetric: the left operand is its own transpose
      for (index_t i = 0; i < factor_.elements(); ++i) factor_.data()[i] *= -0.5;
      add_to_diagonal(factor_, 0.5);
      distance = row_sum_norm(factor_);
      settled = distance < 1e-9;  // whose square, the error after this step, is below rounding
      add_to_diagonal(factor_, 1);
      replace(root_, root_, factor_);
      replace(result, factor_, result);
    }
    if (!settled) return fill(nan);
    const double scale = 1 / std::sqrt(bound);
    for (index_t i = 0; i < result.size; ++i) {
      for (index_t j = 0; j <= i; ++j) result(i, j) = result(j, i) = (result(i, j) + result(j, i)) * (scale / 2);
    }
  }

  Square result;

 private:
  static constexpr int kMostSteps = 60;  // reach eigenvalues of 1e-15 of the largest

  void replace(const Square& to, const Square& left, const Square& right) const {
    multiply_into(work_, left, right);
    std::copy_n(work_.data(), work_.elements(), to.data());
  }
  void fill(double value) const { std::fill_n(result.data(), result.elements(), value); }

  Square root_, factor_, work_;
};

}  // namespace subspan
