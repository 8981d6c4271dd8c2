// Three functions of a symmetric positive semidefinite G that a rotation by the angles G^1/2 is made of:
//   cosine  cos G^1/2,   sine  G^-1/2 sin G^1/2,   versine  G^-1 (I - cos G^1/2).
// All are entire in G: they are polynomials to rounding, and need no eigenvectors, so nothing happens at G = 0, at
// repeated eigenvalues or at a loss of rank.
//   Taylor polynomials of degree 8 at A = G / 4^j, ||A|| <= 1 (the first term left out is below 1 / 19!), then the
//   angles are doubled j times. With W = I - cos: W(4A) = 4 W - 2 W^2, sine(4A) = sine - W sine, versine(4A) = sine^2
//   / 2. Kept as W, the error of a small angle stays relative; cos 2a = 2 cos^2 a - 1 would multiply it by 4 at every
//   doubling.
#pragma once
#include "core/small_matrix/square.h"

namespace subspan {

class RotationFunctions {
 public:
  RotationFunctions(index_t size, Workspace& workspace)
      : cosine(Square::take(size, workspace)),
        sine(Square::take(size, workspace)),
        versine(Square::take(size, workspace)),
        square_(Square::take(size, workspace)),
        cube_(Square::take(size, workspace)),
        work_(Square::take(size, workspace)) {}

  // G is scaled in place. A G that is not finite gives NaN in every entry.
  void run(const Square& G) {
    int doublings = 0;
    double norm = row_sum_norm(G);
    if (!(norm <= std::numeric_limits<double>::max())) return fill(std::numeric_limits<double>::quiet_NaN());
    for (; norm > 1; norm /= 4) ++doublings;
    const double scale = std::ldexp(1.0, -2 * doublings);
    for (index_t i = 0; i < G.elements(); ++i) G.data()[i] *= scale;
    multiply_into(square_, G, G);
    multiply_into(cube_, square_, G);
    polynomial(sine, G, 1);
    polynomial(versine, G, 2);
    multiply_into(cosine, G, versine);  // W, until the end
    for (int step = 0; step < doublings; ++step) {
      multiply_into(versine, sine, sine, 0.5);
      multiply_into(work_, cosine, sine);
      add_scaled(sine, -1, work_);
      multiply_into(work_, cosine, cosine);
      for (index_t i = 0; i < cosine.elements(); ++i) cosine.data()[i] = 4 * cosine.data()[i] - 2 * work_.data()[i];
    }
    for (index_t i = 0; i < cosine.elements(); ++i) cosine.data()[i] = -cosine.data()[i];
    add_to_diagonal(cosine, 1);
  }

  Square cosine, sine, versine;

 private:
  // sum_m (-A)^m / (2 m + first)! for m = 0 ... 8, by Horner's rule in A^3.
  void polynomial(const Square& result, const Square& A, int first) const {
    double c[9];
    double factorial = first;  // 1! and 2!
    for (int m = 0; m < 9; ++m) {
      c[m] = (m % 2 ? -1 : 1) / factorial;
      factorial *= (2 * m + first + 1) * (2 * m + first + 2);
    }
    combine(result, A, c + 6);
    multiply_into(work_, cube_, result);
    combine(result, A, c + 3);
    add_scaled(work_, 1, result);
    multiply_into(result, cube_, work_);
    combine(work_, A, c);
    add_scaled(result, 1, work_);
  }

  // c[0] I + c[1] A + c[2] A^2
  void combine(const Square& to, const Square& A, const double* c) const {
    for (index_t i = 0; i < to.elements(); ++i) to.data()[i] = c[1] * A.data()[i] + c[2] * square_.data()[i];
    add_to_diagonal(to, c[0]);
  }

  void fill(double value) const {
    for (const Square* square : {&cosine, &sine, &versine}) std::fill_n(square->data(), square->elements(), value);
  }

  Square square_, cube_, work_;
};

}  // namespace subspan
