// What the gradient of a polar factorisation A = Q H makes of small matrices. With S = Q^T dQ it is
//   dQ H^-1 + Q (Z + 2 H Y - S H^-1),   H Z + Z H = S - S^T,   H Y + Y H = (dH + dH^T) / 2.
// In the eigenvectors of H, with eigenvalues h_i, every term divides by h_i + h_j or h_j, never by a difference.
#pragma once
#include "core/small_matrix/jacobi.h"
#include "ops/orthogonal/frame_factor.h"

namespace subspan {

class PolarGradient {
 public:
  // `unit` of rounding of H: eigenvalues that are smaller are taken for zero, and nothing flows through them.
  PolarGradient(index_t count, double unit, Workspace& workspace) : count_(count), unit_(unit) {
    for (Vec<double>** matrix : {&H_, &V_, &S_, &E_, &work_}) *matrix = workspace.take<Vec<double>>(count * count);
    values_ = workspace.take<Vec<double>>(count);
    inverses_ = workspace.take<Vec<double>>(count);
  }

  // left = H^-1 and right = Z + 2 H Y - S H^-1 from `products` S^T and `upstream` dH. `square`: Q is square, and the
  // two terms with H^-1 are one and the same but for their signs: both are left out.
  void run(const Dense* H, const Dense* products, const Dense* upstream, index_t together, bool square,
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

 private:
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
  Vec<double>*H_, *V_, *S_, *E_, *work_, *values_, *inverses_;
};

}  // namespace subspan
