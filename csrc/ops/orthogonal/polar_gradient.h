// What the gradient of a polar factorisation A = Q H makes of small matrices. With S = Q^T dQ it is
//   dQ H^-1 + Q (Z + 2 H Y - S H^-1),   H Z + Z H = S - S^T,   H Y + Y H = (dH + dH^T) / 2.
// Few columns: in the eigenvectors of H, with eigenvalues h_i, every term divides by h_i + h_j or h_j, never by a
//   difference.
// More: both equations are one, H X + X H = C, and so is X = A X A + 2 m W C W with W = (H + m I)^-1, A = I - 2 m W
//   (Smith 1968). Its series sum_j A^j (2 m W C W) A^j doubles its terms with two products; with m the geometric mean
//   of the extreme eigenvalues A has norm (sqrt(kappa) - 1) / (sqrt(kappa) + 1).
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
    if (!factored_in_lanes(count_)) {
      if (by_series(H[0], products[0], upstream[0], square, left[0], right[0])) return;
      Workspace workspace;
      take_lanes(workspace);
      return by_eigenvectors(H, products, upstream, together, square, left, right);
    }
    by_eigenvectors(H, products, upstream, together, square, left, right);
  }

 private:
  void take_lanes(Workspace& workspace) {
    for (Vec<double>** matrix : {&H_, &V_, &S_, &E_, &work_}) *matrix = workspace.take<Vec<double>>(count_ * count_);
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

  void by_eigenvectors(const Dense* H, const Dense* products, const Dense* upstream, index_t together, bool square,
                       const Dense* left, const Dense* right) {
    const index_t k = count_;
    detail::to_lanes(H, together, k, false, H_, k, 1);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < i; ++j) {
        const Vec<double> mean = (H_[i * k + j] + H_[j * k + i]) * 0.5;
        H_[i * k + j] = mean, H_[j * k + i] = mean;
      }
    }
    eigh_interleaved<Precision::kRelative, double>(H_, k, V_, values_);  // column c of V at V_[c * k]
    Vec<double> largest{};
    for (index_t c = 0; c < k; ++c) largest = values_[c] > largest ? values_[c] : largest;
    const Vec<double> least = largest * (unit_ * static_cast<double>(k));
    for (index_t c = 0; c < k; ++c) inverses_[c] = values_[c] > least ? 1 / values_[c] : Vec<double>{} + values_[c] * 0;
    detail::to_lanes(products, together, k, false, S_, k, 1);
    rotate(S_, false);
    detail::to_lanes(upstream, together, k, false, E_, k, 1);
    rotate(E_, false);
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) {
        const Vec<double> sum = values_[i] + values_[j];
        const Vec<double> over_sum = sum > least ? 1 / sum : sum * 0;
        const Vec<double> S = S_[j * k + i], transposed = S_[i * k + j];
        Vec<double> entry = ((S - transposed) + (E_[i * k + j] + E_[j * k + i]) * values_[i]) * over_sum;
        if (!square) entry -= S * inverses_[j];
        work_[i * k + j] = entry;
      }
    }
    std::copy_n(work_, k * k, H_);
    rotate(H_, true);
    detail::from_lanes(H_, k, 1, together, k, false, right);
    if (square) return;
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) H_[i * k + j] = i == j ? inverses_[i] : Vec<double>{};
    }
    rotate(H_, true);
    detail::from_lanes(H_, k, 1, together, k, false, left);
  }

  // M = V^T M V, or V M V^T if `back`.
  void rotate(Vec<double>* M, bool back) {
    const index_t k = count_, along = back ? k : 1, across = back ? 1 : k;
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) work_[i * k + j] = Vec<double>{};
      for (index_t r = 0; r < k; ++r) {
        const Vec<double> factor = V_[i * across + r * along];
        for (index_t j = 0; j < k; ++j) work_[i * k + j] += factor * M[r * k + j];
      }
    }
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) {
        Vec<double> sum{};
        for (index_t r = 0; r < k; ++r) sum += work_[i * k + r] * V_[j * across + r * along];
        M[i * k + j] = sum;
      }
    }
  }

  index_t count_;
  double unit_;
  std::optional<DenseInverse> inverse_;
  Dense A_, W_, X_, product_;
  Vec<double>*H_, *V_, *S_, *E_, *work_, *values_, *inverses_;
};

}  // namespace subspan
