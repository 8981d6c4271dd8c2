// matching_pursuit: a sparse code of every row of x over the atoms w_m, rows of W, found greedily. With r_0 = x,
//   i_t = argmax_m r_{t-1} . w_m,   v_t = r_{t-1} . w_{i_t},   r_t = r_{t-1} - v_t w_{i_t}
// by the products' value or magnitude, the lower atom of equal ones; with relu, v_t = max(v_t, 0). What is not finite
// becomes NaN, and so does what follows in its row.
//
// pursuit_values: v and r_T for given atoms. Its gradient, with u_T = dL/dr_T, backwards:
//   y_t = dL/dv_t - u_t . a_t,   u_{t-1} = u_t + y_t a_t,   dL/da_t = y_t r_{t-1} - v_t u_t,   dL/dx = u_0
// with a_t = w_{i_t}, and y_t = 0 where relu cut v_t off.
//   x (*batch, n, d), W (*batch, atoms, d), upstreams, any strides; values, indices (*batch, n, steps), residual, d_x
//   (*batch, n, d), d_W (*batch, atoms, d) packed. Given indices int32 of any strides.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

struct PursuitParameters {
  index_t steps;
  bool by_magnitude, relu;
};

struct PursuitUpstream {
  const TensorView* values;  // absent: zero
  const TensorView* residual;
};

inline void check_pursuit_arrays(const TensorView& x, const TensorView& W, Device device, const char* op) {
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  check_input(W, 2, device, op, "W");
  CHECK(is_float(W.dtype) && compute_dtype(W.dtype) == compute_dtype(x.dtype), op, ": W: expected the type of x");
  CHECK(W.size(-1) == x.size(-1) && batch_count(W, 2) == batch_count(x, 2), op, ": W: expected atoms as long as x");
  CHECK(1 <= W.size(-2) && W.size(-2) < (index_t{1} << 31), op, ": W: expected at least one atom");
}

inline void check_matching_pursuit(const TensorView& x, const TensorView& W, const TensorView& values,
                                   const TensorView* residual, const TensorView* indices,
                                   const PursuitParameters& parameters, Device device) {
  constexpr const char* op = "matching_pursuit";
  check_pursuit_arrays(x, W, device, op);
  const DType compute = compute_dtype(x.dtype);
  const index_t rows = batch_count(x, 1), steps = parameters.steps;
  CHECK(1 <= steps && steps < (index_t{1} << 31), op, ": steps: expected a positive number");
  check_output(values, compute, rows * steps, device, op, "values");
  if (residual) check_output(*residual, compute, x.numel(), device, op, "residual");
  if (indices) check_output(*indices, DType::i32, rows * steps, device, op, "indices");
}

inline void check_pursuit_indices(const TensorView& x, const TensorView& indices, Device device, const char* op) {
  check_input(indices, 2, device, op, "indices");
  CHECK(indices.dtype == DType::i32 && batch_count(indices, 1) == batch_count(x, 1) && indices.size(-2) == x.size(-2),
        op, ": indices: expected int32 for every row of x");
}

inline void check_pursuit_values(const TensorView& x, const TensorView& W, const TensorView& indices,
                                 const TensorView& values, const TensorView* residual, Device device) {
  constexpr const char* op = "matching_pursuit";
  check_pursuit_arrays(x, W, device, op);
  check_pursuit_indices(x, indices, device, op);
  check_output(values, compute_dtype(x.dtype), indices.numel(), device, op, "values");
  if (residual) check_output(*residual, compute_dtype(x.dtype), x.numel(), device, op, "residual");
}

inline void check_pursuit_gradient(const TensorView& x, const TensorView& W, const TensorView& indices,
                                   const PursuitUpstream& upstream, const TensorView* d_x, const TensorView* d_W,
                                   Device device) {
  constexpr const char* op = "matching_pursuit";
  check_pursuit_arrays(x, W, device, op);
  check_pursuit_indices(x, indices, device, op);
  const DType compute = compute_dtype(x.dtype);
  const auto check_shape = [&](const TensorView& upstream, const TensorView& like) {
    check_input(upstream, 2, device, op, "upstream");
    CHECK(upstream.dtype == compute && batch_count(upstream, 2) == batch_count(like, 2) &&
              upstream.size(-2) == like.size(-2) && upstream.size(-1) == like.size(-1),
          op, ": upstream: expected the shape and type of the output");
  };
  if (upstream.values) check_shape(*upstream.values, indices);
  if (upstream.residual) check_shape(*upstream.residual, x);
  if (d_x) check_output(*d_x, compute, x.numel(), device, op, "d_x");
  if (d_W) check_output(*d_W, compute, W.numel(), device, op, "d_W");
}

void matching_pursuit_cpu(const TensorView& x, const TensorView& W, const TensorView& values,
                          const TensorView* residual, const TensorView* indices, const PursuitParameters& parameters,
                          int threads);
void pursuit_values_cpu(const TensorView& x, const TensorView& W, const TensorView& indices, const TensorView& values,
                        const TensorView* residual, bool relu, int threads);
void pursuit_gradient_cpu(const TensorView& x, const TensorView& W, const TensorView& indices,
                          const PursuitUpstream& upstream, const TensorView* d_x, const TensorView* d_W, bool relu,
                          int threads);

}  // namespace subspan
