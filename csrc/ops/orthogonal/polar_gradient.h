// What the gradient of a polar factorisation A = Q H makes of small matrices. With S = Q^T dQ it is
//   dQ H^-1 + Q (Z + 2 H Y - S H^-1),   H Z + Z H = S - S^T,   H Y + Y H = (dH + dH^T) / 2.
// Both equations are one, H X + X H = C, and so is X = A X A + 2 m W C W with W = (H + m I)^-1, A = I - 2 m W (Smith
//   1968). Its series sum_j A^j (2 m W C W) A^j doubles its terms with two products; with m the geometric mean of the
//   extreme eigenvalues A has norm (sqrt(kappa) - 1) / (sqrt(kappa) + 1). Few columns: several matrices side by side in
//   SIMD lanes.
// Where H is ill-conditioned: in its eigenvectors, with eigenvalues h_i, every term divides by h_i + h_j or h_j, never
// by
//   a difference.
#pragma once
#include <optional>

#include "core/small_matrix/jacobi.h"
#include "ops/orthogonal/dense_inverse.h"
#include "ops/orthogonal/frame_factor.h"

namespace subspan {

class PolarGradient {
 public:
  // `unit` of rounding of H: eigenvalues that are smaller are taken for zero, and nothing flows through them.
  PolarGradient(index_t count, double unit, Workspace& workspace) : count_(count), unit_(unit) {
    if (factored_in_lanes(count)) {
      take_lanes(workspace);
    } else {
      inverse_.emplace(count, workspace);
      for (Dense* matrix : {&A_, &W_, &X_, &product_}) *matrix = Dense::take(count, count, workspace);
    }
  }

  // left = H^-1 and right = Z + 2 H Y - S H^-1 from `products` S^T and `upstream` dH. `square`: Q is square, and the
  // two terms with H^-1 are one and the same but for their signs: both are left out.
  void run(const Dense* H, const Dense* products, const Dense* upstream, index_t together, bool square,
           const Dense* left, const Dense* right) {
    if (factored_in_lanes(count_)) return in_lanes(H, products, upstream, together, square, left, right);
    if (by_series(H[0], products[0], upstream[0], square, left[0], right[0])) return;
    Workspace workspace;
    take_lanes(workspace);
    in_lanes(H, products, upstream, together, square, left, right);
  }

 private:
  using Lanes = detail::Lanes;

  void take_lanes(Workspace& workspace) {
    for (Lanes* matrix : {&h_, &p_, &e_, &left_, &right_, &v_, &w_, &work_})
      *matrix = {workspace.take<Vec<double>>(count_ * count_), count_, 1};
    values_ = workspace.take<Vec<double>>(count_);
    inverses_ = workspace.take<Vec<double>>(count_);
  }

  // False where H is singular to rounding.
  bool by_series(const Dense& H, const Dense& P, const Dense& E, bool square, const Dense& left, const Dense& right) {
    const index_t k = count_;
    inverse_->run(H, 0, left);
    const double largest = 1.05 * norm_estimate(H, k), smallest = 0.95 / norm_estimate(left, k);
    if (!(smallest > largest * unit_ * static_cast<double>(k))) return false;
    const double middle = std::sqrt(smallest * largest);
    inverse_->run(H, middle, W_);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) {
        A_(i, j) = (i == j) - 2 * middle * W_(i, j);
        X_(i, j) = P(j, i) - P(i, j) + (E(i, j) + E(j, i)) / 2;
      }
    }
    multiply(W_, X_, product_, 2 * middle);
    multiply(product_, W_, X_, 1);
    const double ratio = std::sqrt(largest / smallest);
    double rest = (ratio - 1) / (ratio + 1);
    rest *= rest;  // what is left of the series, relative to what there is
    for (int step = 0; rest > unit_ / 8 && step < 40; ++step, rest *= rest) {
      if (step > 0) {
        multiply(A_, A_, product_, 1);
        std::swap(A_, product_);
      }
      multiply(A_, X_, product_, 1);
      dense_product(product_.data, product_.step, 1, A_, k, k, false, Team(), StoreDense{X_, X_, 1, 1});
    }
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) {
        right(i, j) = (X_(i, j) - X_(j, i)) / 2;
        product_(i, j) = X_(i, j) + X_(j, i);
      }
    }
    dense_product(H.data, H.step, 1, product_, k, k, false, Team(), StoreDense{right, right, 1, 1});
    if (!square)  // P^T left
      dense_product(P.data, 1, P.step, left, k, k, false, Team(), StoreDense{right, right, 1, -1});
    return true;
  }

  void multiply(const Dense& first, const Dense& second, const Dense& to, double scale) const {
    dense_product(first.data, first.step, 1, second, count_, count_, false, Team(), StoreDense{to, to, 0, scale});
  }

  void in_lanes(const Dense* H, const Dense* products, const Dense* upstream, index_t together, bool square,
                const Dense* left, const Dense* right) {
    const index_t k = count_;
    detail::to_lanes(H, together, k, false, h_.data, k, 1);
    detail::to_lanes(products, together, k, false, p_.data, k, 1);
    detail::to_lanes(upstream, together, k, false, e_.data, k, 1);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < i; ++j) {
        const Vec<double> mean = (h_(i, j) + h_(j, i)) * 0.5;
        h_(i, j) = mean, h_(j, i) = mean;
      }
    }
    const Mask<double> rest = factored_in_lanes(k) ? series_in_lanes(square) : Vec<double>{} == 0;
    if (any<double>(rest)) by_eigenvectors(rest, square);
    detail::from_lanes(right_.data, k, 1, together, k, false, right);
    if (!square) detail::from_lanes(left_.data, k, 1, together, k, false, left);
  }

  // Gives the lanes that it does not serve: those of ill-conditioned H, for which the series would be long.
  Mask<double> series_in_lanes(bool square) {
    const index_t k = count_;
    Lanes& A = v_;
    invert(h_, Vec<double>{}, left_);
    const Vec<double> larger = detail::squared_norm(h_, k), smaller = detail::squared_norm(left_, k);
    const Mask<double> rest = !(larger * smaller <= kMostSpread * kMostSpread);
    const Vec<double> middle = square_root(square_root(larger) / square_root(smaller));
    invert(h_, middle, w_);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) {
        A(i, j) = -2 * middle * w_(i, j);
        right_(i, j) = p_(j, i) - p_(i, j) + (e_(i, j) + e_(j, i)) * 0.5;
      }
      A(i, i) += 1;
    }
    multiply(w_, right_, [&](index_t i, index_t j, Vec<double> sum) { work_(i, j) = 2 * middle * sum; });
    multiply(work_, w_, [&](index_t i, index_t j, Vec<double> sum) { right_(i, j) = sum; });
    for (Mask<double> settled = rest;;) {
      settled |= detail::squared_norm(A, k) <= unit_ / 8;  // what is left of the series, relative to what there is
      if (!any<double>(!settled)) break;
      multiply(A, right_, [&](index_t i, index_t j, Vec<double> sum) { work_(i, j) = sum; });
      multiply(work_, A, [&](index_t i, index_t j, Vec<double> sum) { right_(i, j) += settled ? Vec<double>{} : sum; });
      multiply(A, A, [&](index_t i, index_t j, Vec<double> sum) { work_(i, j) = sum; });
      std::swap(A, work_);
    }
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j <= i; ++j) {
        const Vec<double> X = right_(i, j), transposed = right_(j, i);
        w_(i, j) = X + transposed, w_(j, i) = X + transposed;
        right_(i, j) = (X - transposed) * 0.5, right_(j, i) = (transposed - X) * 0.5;
      }
    }
    multiply(h_, w_, [&](index_t i, index_t j, Vec<double> sum) { right_(i, j) += sum; });
    if (!square) multiply(p_.transposed(), left_, [&](index_t i, index_t j, Vec<double> sum) { right_(i, j) -= sum; });
    return rest;
  }

  template <class Finish>
  void multiply(const Lanes& first, const Lanes& second, Finish&& finish) const {
    multiply_interleaved(first, count_, second, count_, count_, finish);
  }

  // to = (M + shift I)^-1
  void invert(const Lanes& M, Vec<double> shift, const Lanes& to) const {
    std::copy_n(M.data, count_ * count_, to.data);
    for (index_t i = 0; i < count_; ++i) to(i, i) += shift;
    detail::invert_definite(to, count_, inverses_);
  }

  // In the lanes of `wanted`. h, p and e are overwritten.
  void by_eigenvectors(Mask<double> wanted, bool square) {
    const index_t k = count_;
    const auto keep = [&](const Lanes& to) {
      for (index_t i = 0; i < k * k; ++i) to.data[i] = wanted ? h_.data[i] : to.data[i];
    };
    eigh_interleaved<Precision::kRelative, double>(h_.data, k, v_.data, values_);  // column c of V at v[c * k]
    Vec<double> largest{};
    for (index_t c = 0; c < k; ++c) largest = values_[c] > largest ? values_[c] : largest;
    const Vec<double> least = largest * (unit_ * static_cast<double>(k));
    for (index_t c = 0; c < k; ++c) inverses_[c] = values_[c] > least ? 1 / values_[c] : Vec<double>{} + values_[c] * 0;
    rotate(p_, false);
    rotate(e_, false);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) {
        const Vec<double> sum = values_[i] + values_[j];
        const Vec<double> over_sum = sum > least ? 1 / sum : sum * 0;
        h_(i, j) = ((p_(j, i) - p_(i, j)) + (e_(i, j) + e_(j, i)) * values_[i]) * over_sum;
        if (!square) h_(i, j) -= p_(j, i) * inverses_[j];
      }
    }
    rotate(h_, true);
    keep(right_);
    if (square) return;
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) h_(i, j) = i == j ? inverses_[i] : Vec<double>{};
    }
    rotate(h_, true);
    keep(left_);
  }

  // M = V^T M V, or V M V^T if `back`.
  void rotate(const Lanes& M, bool back) {
    const Lanes V = back ? v_.transposed() : v_;  // entry (i, r): of row r of vector i, or of vector r in row i
    multiply(V, M, [&](index_t i, index_t j, Vec<double> sum) { work_(i, j) = sum; });
    multiply(work_, V.transposed(), [&](index_t i, index_t j, Vec<double> sum) { M(i, j) = sum; });
  }

  // Of the Frobenius norms of H and its inverse.
  static constexpr double kMostSpread = 1e3;

  index_t count_;
  double unit_;
  std::optional<DenseInverse> inverse_;
  Dense A_, W_, X_, product_;
  Lanes h_, p_, e_, left_, right_, v_, w_, work_;
  Vec<double>*values_, *inverses_;
};

}  // namespace subspan
