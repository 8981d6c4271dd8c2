// cayley: Q = (I - K/2)^-1 (I + K/2), orthogonal, of the skew part K = (A - A^T) / 2 of many square matrices.
//   A (*batch, n, n) any strides; Q and, on request, W = (I - K/2)^-1 (*batch, n, n), packed. Q = 2 W - I.
// cayley_gradient: that of A from W and the gradient G of Q, (S - S^T) / 2 with S = W^T G W^T.
//   W packed, of the type computed in; G of that type, any strides; d_A (*batch, n, n) packed.
// cayley_of_triangle: B Q of the skew matrix K = L - L^T whose strict lower triangle L is that of A, which holds
// nothing else; without B it is Q. On request W, and B W, which is absent without B: with it the gradient of L is the
// lower triangle of S - S^T with S = (B W)^T G W^T, two products as before. An item that is not finite is NaN.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_cayley(const TensorView& A, const TensorView& Q, const TensorView* W, Device device) {
  constexpr const char* op = "cayley";
  check_input(A, 2, device, op, "A");
  CHECK(is_float(A.dtype), op, ": A: expected a floating point array");
  CHECK(A.size(-1) == A.size(-2), op, ": A: expected square matrices, got ", A.size(-2), " x ", A.size(-1));
  check_output(Q, compute_dtype(A.dtype), A.numel(), device, op, "Q");
  if (W) check_output(*W, compute_dtype(A.dtype), A.numel(), device, op, "W");
}

inline void check_cayley_gradient(const TensorView& W, const TensorView& G, const TensorView& d_A, Device device) {
  constexpr const char* op = "cayley_gradient";
  check_input(W, 2, device, op, "W");
  check_input(G, 2, device, op, "G");
  CHECK(W.dtype == DType::f32 || W.dtype == DType::f64, op, ": W: expected a float32 or float64 array");
  CHECK(G.dtype == W.dtype, op, ": G: expected the type of W");
  CHECK(W.size(-1) == W.size(-2) && G.size(-1) == W.size(-1) && G.size(-2) == W.size(-1) &&
            batch_count(G, 2) == batch_count(W, 2),
        op, ": G: expected the shape of W");
  check_output(d_A, W.dtype, W.numel(), device, op, "d_A");
}

struct CayleyOfTriangle {
  const TensorView& A;
  const TensorView* base;
};

inline void check_cayley_of_triangle(const CayleyOfTriangle& in, const TensorView& Q, const TensorView* W,
                                     const TensorView* turned, Device device) {
  constexpr const char* op = "cayley_of_triangle";
  check_cayley(in.A, Q, W, device);
  if (turned) check_output(*turned, compute_dtype(in.A.dtype), in.A.numel(), device, op, "turned");
  CHECK(in.base || !turned, op, ": turned: expected a base");
  if (!in.base) return;
  check_input(*in.base, 2, device, op, "base");
  CHECK(in.base->dtype == compute_dtype(in.A.dtype), op, ": base: expected the type that is computed in");
  CHECK(in.base->size(-1) == in.A.size(-1) && in.base->size(-2) == in.A.size(-1) &&
            batch_count(*in.base, 2) == batch_count(in.A, 2),
        op, ": base: expected the shape of A");
}

inline void check_cayley_of_triangle_gradient(const TensorView& W, const TensorView* turned, const TensorView& G,
                                              const TensorView& d_A, Device device) {
  constexpr const char* op = "cayley_of_triangle_gradient";
  check_cayley_gradient(W, G, d_A, device);
  if (!turned) return;
  check_input(*turned, 2, device, op, "turned");
  CHECK(turned->dtype == W.dtype && turned->size(-1) == W.size(-1) && turned->size(-2) == W.size(-1) &&
            batch_count(*turned, 2) == batch_count(W, 2),
        op, ": turned: expected the type and shape of W");
}

inline void check_packed(const TensorView& a, std::int64_t size, const char* op) {
  CHECK(a.size(-2) == 1 && a.size(-1) == size * (size - 1) / 2, op, ": a: expected ", size * (size - 1) / 2,
        " numbers for matrices of order ", size, ", got ", a.size(-1));
}

inline void check_cayley_of_packed(const TensorView& a, const TensorView& Q, const TensorView* W, Device device) {
  constexpr const char* op = "cayley_of_packed";
  check_input(a, 2, device, op, "a");
  CHECK(is_float(a.dtype), op, ": a: expected a floating point array");
  CHECK(Q.ndim >= 2 && Q.size(-1) == Q.size(-2), op, ": Q: expected square matrices");
  check_packed(a, Q.size(-1), op);
  const std::int64_t entries = batch_count(a, 2) * Q.size(-1) * Q.size(-1);
  check_output(Q, compute_dtype(a.dtype), entries, device, op, "Q");
  if (W) check_output(*W, compute_dtype(a.dtype), entries, device, op, "W");
}

inline void check_cayley_of_packed_gradient(const TensorView& W, const TensorView& G, const TensorView& d_a,
                                            Device device) {
  constexpr const char* op = "cayley_of_packed_gradient";
  check_input(W, 2, device, op, "W");
  check_input(G, 2, device, op, "G");
  CHECK(W.dtype == DType::f32 || W.dtype == DType::f64, op, ": W: expected a float32 or float64 array");
  CHECK(G.dtype == W.dtype && W.size(-1) == W.size(-2) && G.size(-1) == W.size(-1) && G.size(-2) == W.size(-1) &&
            batch_count(G, 2) == batch_count(W, 2),
        op, ": G: expected the type and shape of W");
  check_output(d_a, W.dtype, batch_count(W, 2) * (W.size(-1) * (W.size(-1) - 1) / 2), device, op, "d_a");
}

void cayley_cpu(const TensorView& A, const TensorView& Q, const TensorView* W, int threads);
void cayley_gradient_cpu(const TensorView& W, const TensorView& G, const TensorView& d_A, int threads);
void cayley_of_triangle_cpu(const CayleyOfTriangle& in, const TensorView& Q, const TensorView* W,
                            const TensorView* turned, int threads);
void cayley_of_triangle_gradient_cpu(const TensorView& W, const TensorView* turned, const TensorView& G,
                                     const TensorView& d_A, int threads);
void cayley_of_packed_cpu(const TensorView& a, const TensorView& Q, const TensorView* W, int threads);
void cayley_of_packed_gradient_cpu(const TensorView& W, const TensorView& G, const TensorView& d_a, int threads);

}  // namespace subspan
