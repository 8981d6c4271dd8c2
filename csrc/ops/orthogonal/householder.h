// Products of Householder reflectors, Q = H_1 ... H_k with H_j = I - tau_j v_j v_j^T and, by default, tau_j =
// 2 / ||v_j||^2; a reflector of zeros is the identity. In the compact WY form (Schreiber, Van Loan 1989)
//   Q = I - V T V^T,   T = (I + D U)^-1 D = D (I + U D)^-1,   D = diag(tau), U = triu(V^T V, 1).
// With w = (I + U D)^-1 V^T X the product is Q X = X - V P, P = D w. Rows of w are v_j^T times what reflector j is
// applied to, so that w is also what a chain taken block by block computes. Backwards, for the upstream gradient G,
// a = (I + D U)^-T V^T G, R = D a, and
//   d_X = G - V R,   d_V = -G P^T - X R^T + V C,   d_tau_j = -<a_j, w_j>,
// where C is symmetric with the upper triangle of R P^T, its diagonal 0 where tau is free. All of it holds at tau = 0.
// Q^T X exchanges the two triangular factors, and in C the upper triangle for the lower one.
//   V (*batch, m, k), or (*batch, k, m) with `rows`; tau (*batch, k) or absent; X (*batch, m, p), or (*batch, p, m)
//   with `right`, for X Q; any strides, half types too. Results as X, packed, of the type computed in for V.
//   coefficients (*batch, k, p): w / ||v||; factors (*batch, k, width + 2): the triangular factor that the gradient
//   takes, tau ||v||^2 and 1 / ||v||. Lengths are divided out so that only directions enter the factors.
#pragma once
#include <algorithm>

#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

// Reflectors of a block, whose triangular factor is formed; `factors` has rows of this many entries and two more.
constexpr std::int64_t kReflectorBlock = 32;
inline std::int64_t reflector_block(std::int64_t reflectors) {
  return std::min<std::int64_t>((reflectors + 7) / 8 * 8, kReflectorBlock);
}

struct HouseholderParameters {
  bool transpose = false, right = false, rows = false;
  bool lapack = false;  // vectors are unit lower triangular; what V holds above is not read
};

struct HouseholderArrays {
  const TensorView& V;
  const TensorView* X;  // absent: the first columns of the identity, `columns` of them
  const TensorView* tau;
  std::int64_t columns = 0;
};

inline void check_householder(const HouseholderArrays& in, const HouseholderParameters& parameters, Device device) {
  constexpr const char* op = "householder_apply";
  check_input(in.V, 2, device, op, "V");
  CHECK(is_float(in.V.dtype), op, ": V: expected a floating point array");
  const std::int64_t items = batch_count(in.V, 2), length = in.V.size(parameters.rows ? -1 : -2);
  if (in.X) {
    check_input(*in.X, 2, device, op, "X");
    CHECK(is_float(in.X->dtype), op, ": X: expected a floating point array");
    CHECK(in.X->size(parameters.right ? -1 : -2) == length && batch_count(*in.X, 2) == items &&
              in.X->size(parameters.right ? -2 : -1) == in.columns,
          op, ": X: expected vectors as long as those of V");
  } else {
    CHECK(in.columns >= 0 && in.columns <= length, op, ": columns: expected at most the length of the reflectors");
  }
  if (in.tau) {
    check_input(*in.tau, 1, device, op, "tau");
    CHECK(is_float(in.tau->dtype) && batch_count(*in.tau, 1) == items &&
              in.tau->size(-1) == in.V.size(parameters.rows ? -2 : -1),
          op, ": tau: expected a floating point number for every reflector");
  }
}

inline void check_householder_saved(const HouseholderArrays& in, const HouseholderParameters& parameters,
                                    const TensorView* coefficients, const TensorView* factors, Device device) {
  constexpr const char* op = "householder_apply";
  const DType dtype = compute_dtype(in.V.dtype);
  const std::int64_t all = batch_count(in.V, 2) * in.V.size(parameters.rows ? -2 : -1);
  if (coefficients) check_output(*coefficients, dtype, all * in.columns, device, op, "coefficients");
  if (factors) {
    const std::int64_t width = reflector_block(in.V.size(parameters.rows ? -2 : -1)) + 2;
    check_output(*factors, dtype, all * width, device, op, "factors");
  }
}

void householder_cpu(const HouseholderArrays& in, const TensorView& result, const TensorView* coefficients,
                     const TensorView* factors, const HouseholderParameters& parameters, int threads);

// Gradients that are not wanted are null.
struct HouseholderGradients {
  const TensorView* V = nullptr;
  const TensorView* X = nullptr;
  const TensorView* tau = nullptr;
};

void householder_gradient_cpu(const HouseholderArrays& in, const TensorView& coefficients, const TensorView& factors,
                              const TensorView& upstream, const HouseholderGradients& gradients,
                              const HouseholderParameters& parameters, int threads);

}  // namespace subspan
