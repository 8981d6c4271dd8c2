// The polar factors R = U H of small square matrices, U orthogonal and H symmetric positive semidefinite.
//   Few columns: singular values and vectors by Jacobi's method, several matrices side by side in SIMD lanes.
//   More: the dynamically weighted iteration of Halley (Nakatsukasa, Bai, Gygi 2010),
//     X <- (b/c) X + (a - b/c) X (I + c X^T X)^-1,
//   whose weights follow from a lower bound of the singular values of X. Its Cholesky factors lose c units of rounding,
//   hence ill-conditioned matrices go to Jacobi's method.
#pragma once
#include <optional>

#include "core/small_matrix/complete_basis.h"
#include "core/small_matrix/interleave.h"
#include "core/small_matrix/jacobi.h"
#include "ops/orthogonal/dense_inverse.h"
#include "ops/orthogonal/frame_factor.h"

namespace subspan {

class PolarFactors {
 public:
  // `most_spread`: of FrameFactors; beyond, the iteration would not be accurate enough.
  PolarFactors(index_t count, double most_spread, Workspace& workspace) : count_(count), most_spread_(most_spread) {
    if (factored_in_lanes(count)) {
      take_lanes(workspace);
    } else {
      inverse_.emplace(count, workspace);
      product_ = Dense::take(count, count, workspace);
    }
  }

  // U and, if it is wanted, H of full rank R; H is overwritten in any case. `inverses`: R^-1.
  void run(const Dense* R, const Dense* inverses, index_t together, double spread, bool wanted, const Dense* U,
           const Dense* H) {
    if (factored_in_lanes(count_) || !(spread <= most_spread_)) {
      Workspace workspace;
      if (!factored_in_lanes(count_)) take_lanes(workspace);
      decompose(R, together);
      compose(together, wanted, U, H);
    } else {
      iterate(R[0], inverses[0], wanted, U[0], H[0]);
    }
  }

  // U and H of any R. U is orthogonal; where R is singular it is one of several. Gives how many singular values are
  // zero to rounding.
  index_t run_any(const Dense& R, const Dense& U, const Dense& H) {
    const index_t k = count_;
    Workspace workspace;
    if (!factored_in_lanes(count_)) take_lanes(workspace);
    decompose(&R, 1);
    double* basis = workspace.take<double>(k * k);
    const double negligible = static_cast<double>(k) * std::numeric_limits<double>::epsilon() * values_[0][0];
    index_t rank = 0;
    while (rank < k && values_[rank][0] > negligible) ++rank;
    for (index_t c = 0; c < rank; ++c) {
      for (index_t r = 0; r < k; ++r) basis[r * k + c] = x_[c * k + r][0] / values_[c][0];
    }
    complete_basis(basis, k, index_t(1), k, rank, k);
    for (index_t c = 0; c < k; ++c) {
      for (index_t r = 0; r < k; ++r) x_[c * k + r] = broadcast(basis[r * k + c]);
      reciprocals_[c] = broadcast(1.0);
    }
    compose(1, true, &U, &H);
    return k - rank;
  }

 private:
  void take_lanes(Workspace& workspace) {
    x_ = workspace.take<Vec<double>>(count_ * count_);
    right_ = workspace.take<Vec<double>>(count_ * count_);
    work_ = workspace.take<Vec<double>>(count_ * count_);
    values_ = workspace.take<Vec<double>>(count_);
    reciprocals_ = workspace.take<Vec<double>>(count_);
  }

  void decompose(const Dense* R, index_t together) {
    detail::to_lanes(R, together, count_, false, x_, 1, count_);
    power_ = scale_to_one<double>(x_, count_ * count_);
    svd_interleaved<double>(x_, count_, count_, right_, values_);
    for (index_t c = 0; c < count_; ++c) reciprocals_[c] = 1 / values_[c];
  }

  // U = X S^-1 V^T, H = V S V^T; columns of X and V are neighbours.
  void compose(index_t together, bool wanted, const Dense* U, const Dense* H) {
    const index_t k = count_;
    product(x_, reciprocals_);
    detail::from_lanes(work_, k, 1, together, k, false, U);
    if (!wanted) return;
    for (index_t c = 0; c < k; ++c) reciprocals_[c] = values_[c] * power_;
    product(right_, reciprocals_);
    detail::from_lanes(work_, k, 1, together, k, false, H);
  }

  // work = left diag(weights) V^T
  void product(const Vec<double>* left, const Vec<double>* weights) {
    const index_t k = count_;
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) work_[i * k + j] = Vec<double>{};
      for (index_t c = 0; c < k; ++c) {
        const Vec<double> factor = left[c * k + i] * weights[c];
        for (index_t j = 0; j < k; ++j) work_[i * k + j] += factor * right_[c * k + j];
      }
    }
  }

  void iterate(const Dense& R, const Dense& inverse_of_R, bool wanted, const Dense& U, const Dense& H) {
    const index_t k = count_;
    const double largest = 1.1 * norm_estimate(R, k), smallest = 0.9 / norm_estimate(inverse_of_R, k);
    double bound = std::min(smallest / largest, 1.0);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < U.step; ++j) U(i, j) = R(i, j) / largest;
    }
    for (int step = 0; step < 30; ++step) {
      const double square = bound * bound;
      const double d = std::cbrt(4 * std::max(1 - square, 0.0) / (square * square));
      const double root = std::sqrt(1 + d);
      const double a = root + 0.5 * std::sqrt(8 - 4 * d + 8 * (2 - square) / (square * root));
      const double b = (a - 1) * (a - 1) / 4, c = a + b - 1;
      dense_product(U.data, 1, U.step, U, k, k, true, Team(), StoreDense{product_, product_, 0, c});
      inverse_->run(product_, 1, product_);
      // H is free until the end.
      dense_product(U.data, U.step, 1, product_, k, k, false, Team(), StoreDense{H, U, b / c, a - b / c});
      std::copy_n(H.data, Dense::elements(k, k), U.data);
      const double reached = bound * (a + b * square) / (1 + c * square);
      const bool settled = bound > 1 - 1e-5;  // its cube is below rounding
      bound = std::min(reached, 1.0);
      if (settled) break;
    }
    if (!wanted) return;
    dense_product(U.data, 1, U.step, R, k, k, false, Team(), StoreDense{product_, product_, 0, 1});
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) H(i, j) = (product_(i, j) + product_(j, i)) / 2;
    }
  }

  index_t count_;
  double most_spread_;
  Vec<double>*x_ = nullptr, *right_ = nullptr, *work_ = nullptr, *values_ = nullptr, *reciprocals_ = nullptr;
  Vec<double> power_{};
  std::optional<DenseInverse> inverse_;
  Dense product_;
};

}  // namespace subspan
