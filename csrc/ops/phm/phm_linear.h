// phm_linear: y = x W^T + bias with W = sum_i A_i (x) S_i, which is never formed, and its gradient.
//   x (*batch, rows, q k), A (*batch, terms, p, q), S (*batch, terms, l, k), bias (*batch, p l) or absent, any strides,
//   A, S and bias of the type computed in; y (*batch, rows, p l) packed.
//   Composed: blocks of W are composed from the factors in the cache, as the operand of the micro-kernel. Direct: rows
//   x are mixed to p rows of terms k entries, which meet every row of S once, by dot products or the micro-kernel.
//   The gradient of an upstream dy: dx = dy W in the same ways; dW = dy^T x in blocks, each contracted to its part of
//   dS and dA while it is in the cache.
#pragma once
#include "ops/phm/phm_weight.h"

namespace subspan {

// What takes the place of W; kAuto is decided by the shapes.
enum class PhmMethod { kAuto, kDirect, kCompose };

inline void check_phm_linear(const TensorView& x, const TensorView& A, const TensorView& S, const TensorView* bias,
                             const TensorView& y, Device device) {
  constexpr const char* op = "phm_linear";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const DType dtype = compute_dtype(x.dtype);
  const std::int64_t items = batch_count(x, 2);
  check_phm_factors(A, S, dtype, items, device, op);
  CHECK(x.size(-1) == A.size(-1) * S.size(-1), op, ": x: expected rows as long as those of W");
  const std::int64_t outputs = A.size(-2) * S.size(-2);
  if (bias) {
    check_input(*bias, 1, device, op, "bias");
    CHECK(bias->dtype == dtype && bias->size(-1) == outputs && batch_count(*bias, 1) == items, op,
          ": bias: expected an entry for every output");
  }
  check_output(y, dtype, items * x.size(-2) * outputs, device, op, "y");
}

inline void check_phm_linear_gradient(const TensorView& x, const TensorView& A, const TensorView& S,
                                      const TensorView& dy, const TensorView* dx, const TensorView* dA,
                                      const TensorView* dS, const TensorView* dbias, Device device) {
  constexpr const char* op = "phm_linear_gradient";
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  const DType dtype = compute_dtype(x.dtype);
  const std::int64_t items = batch_count(x, 2);
  check_phm_factors(A, S, dtype, items, device, op);
  const std::int64_t outputs = A.size(-2) * S.size(-2);
  check_input(dy, 2, device, op, "dy");
  CHECK(x.size(-1) == A.size(-1) * S.size(-1), op, ": x: expected rows as long as those of W");
  CHECK(dy.dtype == dtype && dy.size(-1) == outputs && dy.size(-2) == x.size(-2) && batch_count(dy, 2) == items, op,
        ": dy: expected the shape of y");
  if (dx) check_output(*dx, dtype, items * x.size(-2) * x.size(-1), device, op, "dx");
  check_phm_gradients(A, S, dA, dS, device, op);
  if (dbias) check_output(*dbias, dtype, items * outputs, device, op, "dbias");
}

void phm_linear_cpu(const TensorView& x, const TensorView& A, const TensorView& S, const TensorView* bias,
                    const TensorView& y, PhmMethod method, int threads);
void phm_linear_gradient_cpu(const TensorView& x, const TensorView& A, const TensorView& S, const TensorView& dy,
                             const TensorView* dx, const TensorView* dA, const TensorView* dS, const TensorView* dbias,
                             int threads);

}  // namespace subspan
