// The k x k part of stiefel_step: from the products of X, w, the update and the gradient to the coefficients of the new
// X and the new buffer as combinations of X, w and, by Nesterov, t.
//   w = momentum buffer + share G, t = G + momentum w; b = w + X B, u = b or t + X (A + momentum B).
// Products are of a transposed left operand.
#pragma once
#include "core/small_matrix/inverse_root.h"
#include "ops/orthogonal/stiefel_step.h"

namespace subspan {

// S = X^T X, with_w = X^T w, of_w = w^T w. Only by Nesterov: with_t = X^T t, of_t = t^T t, t_with_w = t^T w. Only where
// wanted: with_gradient = X^T G, and the square of the norm of G.
struct StiefelProducts {
  const Square *S = nullptr, *with_w = nullptr, *of_w = nullptr;
  const Square *with_t = nullptr, *of_t = nullptr, *t_with_w = nullptr;
  const Square* with_gradient = nullptr;
  double gradient_square = 0;
};

class StiefelCoefficients {
 public:
  StiefelCoefficients(index_t k, bool nesterov, bool polar, Workspace& workspace)
      : X_of_X(take(k, workspace)),
        X_of_u(take(k, workspace)),
        buffer_of_X(take(k, workspace)),
        buffer_of_w(take(k, workspace)),
        buffer_of_t(take(nesterov ? k : 0, workspace)),
        A_(take(k, workspace)),
        B_(take(k, workspace)),
        U_(take(k, workspace)),
        M_(take(nesterov ? k : 0, workspace)),
        gram_(take(k, workspace)),
        work_(take(k, workspace)),
        more_(take(k, workspace)),
        root_(polar ? k : 0, workspace) {}

  // Where the metric or the second moment asks for the gradient itself, X^T G is among the products or follows from
  // those with t and w. `second` and `largest`: moments to be brought up to date, or null.
  void run(const StiefelProducts& in, const StiefelStep& step, bool own_gradient, double steps, double* second,
           double* largest) {
    const Square& S = *in.S;
    if (own_gradient) {
      const Square* M = in.with_gradient ? in.with_gradient : in.with_w;  // without a buffer w is the gradient
      if (in.with_t) {
        assign(M_, 1, *in.with_t);
        add_scaled(M_, -step.momentum, *in.with_w);
        M = &M_;
      }
      riemannian(*M, S, step.canonical);
      assign(B_, step.share, A_);
      if (second) update_moments(in, *M, step, second, largest);
    } else {
      symmetric_part(*in.with_w, B_, -1);
    }
    make_tangent(B_, *in.with_w, S);
    const bool nesterov = in.with_t != nullptr;
    assign(U_, 1, B_);
    if (nesterov) {  // A + momentum B, of which A may not be known alone
      if (own_gradient) {
        assign(U_, 1, A_);
        add_scaled(U_, step.momentum, B_);
      } else {
        symmetric_part(*in.with_t, U_, -1);
      }
      make_tangent(U_, *in.with_t, S);
    }
    const double length = step.adaptive ? adapted(step, steps, largest ? *largest : *second) : step.lr;
    retract(S, nesterov ? *in.with_t : *in.with_w, nesterov ? *in.of_t : *in.of_w, length, step.polar);
    transport(in, S, nesterov);
  }

  Square X_of_X, X_of_u, buffer_of_X, buffer_of_w, buffer_of_t;

 private:
  static Square take(index_t k, Workspace& workspace) { return Square::take(k, workspace); }
  static void assign(const Square& to, double scale, const Square& from) {
    for (index_t i = 0; i < to.elements(); ++i) to.data()[i] = scale * from.data()[i];
  }
  // to = scale sym(M)
  static void symmetric_part(const Square& M, const Square& to, double scale) {
    for (index_t i = 0; i < M.size; ++i) {
      for (index_t j = 0; j <= i; ++j) to(i, j) = to(j, i) = scale * (M(i, j) + M(j, i)) / 2;
    }
  }

  // G + X A with M = X^T G.
  void riemannian(const Square& M, const Square& S, bool canonical) {
    if (canonical) {
      transpose_into(A_, M);
      assign(A_, -1, A_);
    } else {
      symmetric_part(M, A_, -1);
    }
    make_tangent(A_, M, S);
  }

  // K -= sym(M + S K): then v + X K, M = X^T v, is tangent but for the square of X's distance from orthonormality.
  void make_tangent(const Square& K, const Square& M, const Square& S) {
    assign(work_, 1, M);
    multiply_into(work_, S, K, 1, 1);
    symmetric_part(work_, more_, -1);
    add_scaled(K, 1, more_);
  }

  // <r, r> = |G|^2 + 2 <A, M> + <A, S A>, of which the canonical metric takes |X^T r|^2 / 2 off.
  void update_moments(const StiefelProducts& in, const Square& M, const StiefelStep& step, double* second,
                      double* largest) {
    multiply_into(work_, S_of(in), A_);
    double square = in.gradient_square;
    for (index_t i = 0; i < M.size; ++i) {
      for (index_t j = 0; j < M.size; ++j) {
        square += A_(i, j) * (2 * M(i, j) + work_(i, j));
        if (step.canonical) square -= (M(i, j) + work_(i, j)) * (M(i, j) + work_(i, j)) / 2;
      }
    }
    *second = step.beta2 * *second + (1 - step.beta2) * (square < 0 ? 0 : square);
    if (largest && !(*second <= *largest)) *largest = *second;
  }
  static const Square& S_of(const StiefelProducts& in) { return *in.S; }

  static double adapted(const StiefelStep& step, double steps, double second) {
    const double first_bias = 1 - std::pow(step.momentum, steps), second_bias = 1 - std::pow(step.beta2, steps);
    return step.lr / first_bias / (std::sqrt(second / second_bias) + step.eps);
  }

  // Z = X (I - length U) - length v with M = X^T v, then Z R^-1 or Z (Z^T Z)^-1/2.
  void retract(const Square& S, const Square& M, const Square& V, double length, bool polar) {
    assign(X_of_X, -length, U_);
    add_to_diagonal(X_of_X, 1);
    multiply_into(work_, S, X_of_X);
    add_scaled(work_, -2 * length, M);
    multiply_into(gram_, X_of_X, work_);  // its symmetric part is Z^T Z - length^2 V
    symmetric_part(gram_, work_, 1);
    add_scaled(work_, length * length, V);
    std::fill_n(X_of_u.data(), X_of_u.elements(), 0.0);
    add_to_diagonal(X_of_u, -length);
    if (polar) {
      root_.run(work_);
      transpose_into(more_, X_of_X);
      multiply_into(X_of_X, more_, root_.result);
      assign(X_of_u, -length, root_.result);
    } else {
      cholesky_in_place(work_);
      transpose_into(more_, work_);
      solve_right(X_of_X, more_);
      solve_right(X_of_u, more_);
    }
  }

  // b - Y T with Y = X a + v c and T = sym(Y^T b), Y^T b = a^T (X^T w + S B) + c^T (v^T w + M^T B).
  void transport(const StiefelProducts& in, const Square& S, bool nesterov) {
    const Square& M = nesterov ? *in.with_t : *in.with_w;
    assign(work_, 1, *in.with_w);
    multiply_into(work_, S, B_, 1, 1);
    multiply_into(gram_, X_of_X, work_);
    assign(work_, 1, nesterov ? *in.t_with_w : *in.of_w);
    multiply_into(work_, M, B_, 1, 1);
    multiply_into(gram_, X_of_u, work_, 1, 1);
    symmetric_part(gram_, work_, -1);
    transpose_into(more_, X_of_X);
    multiply_into(buffer_of_X, more_, work_);
    add_scaled(buffer_of_X, 1, B_);
    transpose_into(more_, X_of_u);
    multiply_into(nesterov ? buffer_of_t : buffer_of_w, more_, work_);
    if (nesterov) std::fill_n(buffer_of_w.data(), buffer_of_w.elements(), 0.0);
    add_to_diagonal(buffer_of_w, 1);
  }

  Square A_, B_, U_, M_, gram_, work_, more_;
  InverseRoot root_;
};

}  // namespace subspan
