// Solutions with, and exponentials of, small general matrices in float64.
#pragma once
#include "core/small_matrix/square.h"

namespace subspan {

// B <- M^-1 B by elimination with row exchanges; M is destroyed. Without a pivot B becomes NaN or infinite.
inline void solve_in_place(const Square& M, const Square& B) {
  const index_t size = M.size;
  const auto each_run = [](const Square& square, index_t from, auto&& body) {
    for (index_t first = from; first < square.size;) {
      const index_t end = std::min(square.size, (first / square.panels.width + 1) * square.panels.width);
      body(first, end - first);
      first = end;
    }
  };
  for (index_t k = 0; k < size; ++k) {
    index_t pivot = k;
    for (index_t i = k + 1; i < size; ++i) {
      if (std::fabs(M(i, k)) > std::fabs(M(pivot, k))) pivot = i;
    }
    if (pivot != k) {
      for (index_t j = 0; j < size; ++j) std::swap(M(k, j), M(pivot, j));
      for (index_t j = 0; j < B.size; ++j) std::swap(B(k, j), B(pivot, j));
    }
    const double reciprocal = 1 / M(k, k);
    for (index_t j = k + 1; j < size; ++j) M(k, j) *= reciprocal;
    for (index_t j = 0; j < B.size; ++j) B(k, j) *= reciprocal;
    for (index_t i = 0; i < size; ++i) {
      const double factor = M(i, k);
      if (i == k || factor == 0) continue;
      const auto subtract = [&](const Square& square) {
        return [&](index_t first, index_t count) {
          const double* from = &square(k, first);
          double* to = &square(i, first);
          for (index_t j = 0; j < count; ++j) to[j] -= factor * from[j];
        };
      };
      each_run(M, k + 1, subtract(M));
      each_run(B, 0, subtract(B));
    }
  }
}

// exp A by a Taylor polynomial of degree 16 (Paterson, Stockmeyer 1973) at A / 2^s, ||A / 2^s|| <= 1/2, whose first
// term left out is below 1e-19, and s squarings. A is scaled. NaN where A is not finite.
class SquareExponential {
 public:
  SquareExponential(index_t size, Workspace& workspace) : result(Square::take(size, workspace)) {
    for (Square& power : powers_) power = Square::take(size, workspace);
    work_ = Square::take(size, workspace);
    transposed_ = Square::take(size, workspace);
  }

  void run(const Square& A) {
    int squarings = 0;
    double norm = row_sum_norm(A);
    if (!(norm <= std::numeric_limits<double>::max())) {
      std::fill_n(result.data(), result.elements(), std::numeric_limits<double>::quiet_NaN());
      return;
    }
    for (; norm > 0.5; norm /= 2) ++squarings;
    const double scale = std::ldexp(1.0, -squarings);
    for (index_t i = 0; i < A.elements(); ++i) A.data()[i] *= scale;
    // Products take the transpose of the left operand. Powers commute, so that the transpose of A serves for all.
    transpose_into(transposed_, A);
    std::copy_n(A.data(), A.elements(), powers_[0].data());
    for (int p = 1; p < 4; ++p) multiply_into(powers_[p], transposed_, powers_[p - 1]);
    transpose_into(transposed_, powers_[3]);
    double c[17] = {1};
    for (int i = 1; i < 17; ++i) c[i] = c[i - 1] / i;
    for (index_t i = 0; i < result.elements(); ++i) result.data()[i] = c[16] * powers_[3].data()[i];
    combine(result, c + 12);
    for (int first : {8, 4, 0}) {
      multiply_into(work_, transposed_, result);
      std::copy_n(work_.data(), work_.elements(), result.data());
      combine(result, c + first);
    }
    for (int step = 0; step < squarings; ++step) {
      transpose_into(transposed_, result);
      multiply_into(work_, transposed_, result);
      std::copy_n(work_.data(), work_.elements(), result.data());
    }
  }

  Square result;

 private:
  // to += c[0] I + c[1] A + c[2] A^2 + c[3] A^3
  void combine(const Square& to, const double* c) const {
    for (int p = 0; p < 3; ++p) add_scaled(to, c[p + 1], powers_[p]);
    add_to_diagonal(to, c[0]);
  }

  Square powers_[4], work_, transposed_;
};

}  // namespace subspan
