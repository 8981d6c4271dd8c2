// The generator W = U Z^T = P X^T - X P^T of a curve from a frame X in the direction V, with P = V - X C / 2,
// U = [P X] and Z = [X -P], by products of k x k matrices alone.
#pragma once
#include <cmath>

#include "core/small_matrix/square.h"

namespace subspan {

struct StiefelGenerator {
  Square E, F;  // X^T P and P^T P

  StiefelGenerator(index_t rank, Workspace& workspace)
      : E(Square::take(rank, workspace)), F(Square::take(rank, workspace)) {}

  // From S = X^T X, C = X^T V, D = V^T V.
  void set(const Square& S, const Square& C, const Square& D) const {
    std::copy_n(C.data(), C.elements(), E.data());
    multiply_into(E, S, C, -0.5, 1);  // S is symmetric
    std::copy_n(D.data(), D.elements(), F.data());
    multiply_into(F, C, C, -0.5, 1);  // P^T P = V^T P - C^T E / 2, V^T P = D - C^T C / 2
    multiply_into(F, C, E, -0.5, 1);
  }

  // I - Z^T U / 2, which Z^T U = [[E, S], [-F, -E^T]] makes.
  void write_cayley(const Square& S, const Square& block) const {
    const index_t rank = E.size;
    for (index_t i = 0; i < rank; ++i) {
      for (index_t j = 0; j < rank; ++j) {
        const double one = i == j ? 1 : 0;
        block(i, j) = one - E(i, j) / 2;
        block(i, rank + j) = -S(i, j) / 2;
        block(rank + i, j) = F(i, j) / 2;
        block(rank + i, rank + j) = one + E(j, i) / 2;
      }
    }
  }

  // A power of two s about as large as P: with P / s in U and s X in Z the blocks beside the diagonal of Z^T U are
  // equally large.
  double balance() const {
    const double norm = row_sum_norm(F);
    return norm > 0 && norm < 1e300 ? std::ldexp(1.0, std::ilogb(std::sqrt(norm))) : 1;
  }
  void write_balanced(const Square& S, double balance, const Square& block) const {
    const index_t rank = E.size;
    for (index_t i = 0; i < rank; ++i) {
      for (index_t j = 0; j < rank; ++j) {
        block(i, j) = E(i, j);
        block(i, rank + j) = S(i, j) * balance;
        block(rank + i, j) = -F(i, j) / balance;
        block(rank + i, rank + j) = -E(j, i);
      }
    }
  }
};

}  // namespace subspan
