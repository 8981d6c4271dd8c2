// The polar factors R = U H of small square matrices, U orthogonal and H symmetric positive semidefinite.
// The dynamically weighted iteration of Halley (Nakatsukasa, Bai, Gygi 2010),
//   X <- (b/c) X + (a - b/c) X (I + c X^T X)^-1,
// whose weights follow from a lower bound of the singular values of X. Its Cholesky factors lose c units of rounding,
// hence ill-conditioned matrices go to Jacobi's method. Of few columns several matrices lie side by side in SIMD lanes.
#pragma once
#include <cmath>
#include <optional>

#include "core/small_matrix/complete_basis.h"
#include "core/small_matrix/interleave.h"
#include "core/small_matrix/jacobi.h"
#include "ops/orthogonal/dense_inverse.h"
#include "ops/orthogonal/frame_factor.h"

namespace subspan {

// X <- keep X + add X (I + square X^T X)^-1
struct HalleyStep {
  double keep, add, square;

  // For singular values in [bound, 1], of which `bound` becomes that of the next X.
  static HalleyStep from(double& bound) {
    const double squared = bound * bound;
    const double d = std::cbrt(4 * std::max(1 - squared, 0.0) / (squared * squared));
    const double root = std::sqrt(1 + d);
    const double a = root + 0.5 * std::sqrt(8 - 4 * d + 8 * (2 - squared) / (squared * root));
    const double b = (a - 1) * (a - 1) / 4, c = a + b - 1;
    bound = std::min(bound * (a + b * squared) / (1 + c * squared), 1.0);
    return {b / c, a - b / c, c};
  }
  static bool is_last(double bound) { return bound > 1 - 1e-5; }  // its cube is below rounding
};

// The steps for singular values in [2^-level, 1], whose weights take cube roots, computed once.
class HalleySteps {
 public:
  static constexpr int kLevels = 10;

  static const HalleySteps& get() {
    static const HalleySteps all;
    return all;
  }
  index_t count(int level) const { return counts_[level]; }
  const HalleyStep& step(int level, index_t turn) const { return steps_[level][turn]; }

 private:
  static constexpr index_t kMost = 8;

  HalleySteps() {
    for (int level = 0; level <= kLevels; ++level) {
      double bound = std::ldexp(1.0, -level);
      index_t& count = counts_[level];
      for (bool last = false; !last && count < kMost; ++count) {
        last = HalleyStep::is_last(bound);
        steps_[level][count] = HalleyStep::from(bound);
      }
    }
  }

  HalleyStep steps_[kLevels + 1][kMost] = {};
  index_t counts_[kLevels + 1] = {};
};

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

  // U and, if it is wanted, H of full rank R; H is overwritten in any case. `inverses`: R^-1, of more columns than
  // lanes take.
  void run(const Dense* R, const Dense* inverses, index_t together, double spread, bool wanted, const Dense* U,
           const Dense* H) {
    const bool small = factored_in_lanes(count_);
    if (!small && spread <= most_spread_) return iterate(R[0], inverses[0], wanted, U[0], H[0]);
    Workspace workspace;
    if (!small) take_lanes(workspace);
    load(R, together);
    const Mask<double> rest = small ? iterate_in_lanes(wanted) : everywhere();
    if (any<double>(rest)) {
      decompose();
      compose(rest, wanted);
    }
    give(together, wanted, U, H);
  }

  // U and H of any R. U is orthogonal; where R is singular it is one of several. Gives how many singular values are
  // zero to rounding.
  index_t run_any(const Dense& R, const Dense& U, const Dense& H) {
    const index_t k = count_;
    Workspace workspace;
    if (!factored_in_lanes(count_)) take_lanes(workspace);
    load(&R, 1);
    decompose();
    double* basis = workspace.take<double>(k * k);
    const double negligible = static_cast<double>(k) * std::numeric_limits<double>::epsilon() * values_[0][0];
    index_t rank = 0;
    while (rank < k && values_[rank][0] > negligible) ++rank;
    for (index_t c = 0; c < rank; ++c) {
      for (index_t r = 0; r < k; ++r) basis[r * k + c] = x_(r, c)[0] / values_[c][0];
    }
    complete_basis(basis, k, index_t(1), k, rank, k);
    for (index_t c = 0; c < k; ++c) {
      for (index_t r = 0; r < k; ++r) x_(r, c) = broadcast(basis[r * k + c]);
      reciprocals_[c] = broadcast(1.0);
    }
    compose(everywhere(), true);
    give(1, true, &U, &H);
    return k - rank;
  }

 private:
  using Lanes = detail::Lanes;
  static Mask<double> everywhere() { return Mask<double>{} == 0; }
  static constexpr index_t kStrip = 4;  // columns of a triangle that are whole

  void take_lanes(Workspace& workspace) {
    for (Lanes* matrix : {&u_, &h_, &gram_, &work_})
      *matrix = {workspace.take<Vec<double>>(count_ * count_), count_, 1};
    right_ = workspace.take<Vec<double>>(count_ * count_);
    x_ = {workspace.take<Vec<double>>(count_ * count_), 1, count_};
    values_ = workspace.take<Vec<double>>(count_);
    reciprocals_ = workspace.take<Vec<double>>(count_);
  }

  void load(const Dense* R, index_t together) {
    detail::to_lanes(R, together, count_, false, x_.data, x_.row, x_.column);
  }

  void give(index_t together, bool wanted, const Dense* U, const Dense* H) const {
    detail::from_lanes(u_.data, count_, 1, together, count_, false, U);
    if (wanted) detail::from_lanes(h_.data, count_, 1, together, count_, false, H);
  }

  // x = R becomes U S.
  void decompose() {
    power_ = scale_to_one<double>(x_.data, count_ * count_);
    svd_interleaved<double>(x_.data, count_, count_, right_, values_);
    for (index_t c = 0; c < count_; ++c) reciprocals_[c] = 1 / values_[c];
  }

  // u = X S^-1 V^T, h = V S V^T in the lanes of `mask`.
  void compose(Mask<double> mask, bool wanted) {
    const Lanes right{right_, 1, count_};  // columns of X and V are neighbours
    product(x_, right, mask, u_);
    if (!wanted) return;
    for (index_t c = 0; c < count_; ++c) reciprocals_[c] = values_[c] * power_;
    product(right, right, mask, h_);
  }

  // to = left diag(reciprocals) right^T
  void product(const Lanes& left, const Lanes& right, Mask<double> mask, const Lanes& to) const {
    for (index_t c = 0; c < count_; ++c) {
      for (index_t i = 0; i < count_; ++i) work_(i, c) = left(i, c) * reciprocals_[c];
    }
    multiply_interleaved(work_, count_, right.transposed(), count_, count_,
                         [&](index_t i, index_t j, Vec<double> sum) { to(i, j) = mask ? sum : to(i, j); });
  }

  // u and h from x = R. Gives the lanes that are too ill-conditioned for it.
  Mask<double> iterate_in_lanes(bool wanted) {
    const index_t k = count_;
    const Vec<double> squares = detail::squared_norm(x_, k), spread = squares * squared_norm_of_inverse();
    const double most = std::min(most_spread_, std::ldexp(1.0, 2 * HalleySteps::kLevels));
    const Mask<double> rest = !(spread <= most);
    int levels[kLanes<double>];
    index_t turns = 0;
    const HalleySteps& steps = HalleySteps::get();
    for (int lane = 0; lane < kLanes<double>; ++lane) {  // the least singular value is at least 1 / sqrt(spread)
      levels[lane] = rest[lane] ? 0 : std::clamp(std::ilogb(spread[lane]) / 2 + 1, 0, HalleySteps::kLevels);
      turns = std::max(turns, steps.count(levels[lane]));
    }
    const Vec<double> scale = 1 / square_root(squares);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) u_(i, j) = x_(i, j) * scale;
    }
    for (index_t turn = 0; turn < turns; ++turn) {
      Vec<double> keep{}, add{}, square{};
      for (int lane = 0; lane < kLanes<double>; ++lane) {
        const bool done = turn >= steps.count(levels[lane]);
        const HalleyStep step = done ? HalleyStep{1, 0, 1} : steps.step(levels[lane], turn);
        keep[lane] = step.keep, add[lane] = step.add, square[lane] = step.square;
      }
      for (index_t c = 0; c < k; c += kStrip) {
        multiply_interleaved(u_.transposed().from(c, 0), k - c, u_.from(0, c), std::min(kStrip, k - c), k,
                             [&](index_t i, index_t j, Vec<double> sum) { gram_(c + i, c + j) = square * sum; });
      }
      for (index_t i = 0; i < k; ++i) gram_(i, i) += 1;
      detail::invert_definite(gram_, k, reciprocals_);
      multiply_interleaved(u_, k, gram_, k, k,
                           [&](index_t i, index_t j, Vec<double> sum) { work_(i, j) = keep * u_(i, j) + add * sum; });
      std::swap(u_, work_);
    }
    if (wanted) {
      multiply_interleaved(u_.transposed(), k, x_, k, k,
                           [&](index_t i, index_t j, Vec<double> sum) { h_(i, j) = sum; });
      for (index_t i = 0; i < k; ++i) {
        for (index_t j = 0; j < i; ++j) {
          const Vec<double> mean = (h_(i, j) + h_(j, i)) * 0.5;
          h_(i, j) = mean, h_(j, i) = mean;
        }
      }
    }
    return rest;
  }

  // Of the inverse of x = R, into work, row by row from the last.
  Vec<double> squared_norm_of_inverse() const {
    const index_t k = count_;
    Vec<double> squares{};
    for (index_t i = k - 1; i >= 0; --i) {
      const Vec<double> reciprocal = 1 / x_(i, i);
      for (index_t j = i; j < k; ++j) {
        Vec<double> sum = broadcast(i == j ? 1.0 : 0.0);
        for (index_t l = i + 1; l <= j; ++l) sum -= x_(i, l) * work_(l, j);
        work_(i, j) = sum * reciprocal;
        squares += work_(i, j) * work_(i, j);
      }
    }
    return squares;
  }

  void iterate(const Dense& R, const Dense& inverse_of_R, bool wanted, const Dense& U, const Dense& H) {
    const index_t k = count_;
    const double largest = 1.1 * norm_estimate(R, k), smallest = 0.9 / norm_estimate(inverse_of_R, k);
    double bound = std::min(smallest / largest, 1.0);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < U.step; ++j) U(i, j) = R(i, j) / largest;
    }
    for (int step = 0; step < 30; ++step) {
      const bool last = HalleyStep::is_last(bound);
      const HalleyStep weights = HalleyStep::from(bound);
      dense_product(U.data, 1, U.step, U, k, k, true, Team(), StoreDense{product_, product_, 0, weights.square});
      inverse_->run(product_, 1, product_);
      // H is free until the end.
      dense_product(U.data, U.step, 1, product_, k, k, false, Team(), StoreDense{H, U, weights.keep, weights.add});
      std::copy_n(H.data, Dense::elements(k, k), U.data);
      if (last) break;
    }
    if (!wanted) return;
    dense_product(U.data, 1, U.step, R, k, k, false, Team(), StoreDense{product_, product_, 0, 1});
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) H(i, j) = (product_(i, j) + product_(j, i)) / 2;
    }
  }

  index_t count_;
  double most_spread_;
  Lanes x_{}, u_{}, h_{}, gram_{}, work_{};
  Vec<double>*right_ = nullptr, *values_ = nullptr, *reciprocals_ = nullptr;
  Vec<double> power_{};
  std::optional<DenseInverse> inverse_;
  Dense product_;
};

}  // namespace subspan
