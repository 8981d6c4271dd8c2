// Activations that a threshold t_j of their column cuts off:
//   jumprelu        x_ij where x_ij > t_j, else 0            dx = g where x > t     dt = -(t / w) sum g where |x - t| <
//   w/2 soft_threshold  sign(x_ij) max(|x_ij| - t_j, 0)          dx = g where |x| > t   dt = -sum sign(x) g where |x| >
//   t
// with a bandwidth w > 0. The gradient to t_j of jumprelu is that of Rajamanoharan et al. 2024, equation (11). NaN in x
// or t is NaN in all of them.
//   x (*batch, n, d), threshold (*batch, d) or (*batch, 1), one for all columns, of the type computed in, any strides;
//   out (*batch, n, d) packed. The gradient: upstream as x, dx as out, dt as threshold, packed.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

enum class ThresholdForm : int { jump = 0, soft = 1 };

inline void check_threshold(const TensorView& x, const TensorView& threshold, Device device, const char* op) {
  check_input(x, 2, device, op, "x");
  CHECK(is_float(x.dtype), op, ": x: expected a floating point array");
  check_input(threshold, 1, device, op, "threshold");
  CHECK(threshold.dtype == compute_dtype(x.dtype), op, ": threshold: expected the type that is computed in");
  CHECK((threshold.size(-1) == x.size(-1) || threshold.size(-1) == 1) && batch_count(threshold, 1) == batch_count(x, 2),
        op, ": threshold: expected a number per column of x, or one");
}

inline void check_cut_off(const TensorView& x, const TensorView& threshold, const TensorView& out, Device device,
                          const char* op) {
  check_threshold(x, threshold, device, op);
  check_output(out, threshold.dtype, x.numel(), device, op, "out");
}

inline void check_cut_off_gradient(const TensorView& upstream, const TensorView& x, const TensorView& threshold,
                                   const TensorView& dx, const TensorView* dt, Device device, const char* op) {
  check_threshold(x, threshold, device, op);
  check_input(upstream, 2, device, op, "upstream");
  CHECK(upstream.dtype == threshold.dtype && upstream.size(-1) == x.size(-1) && upstream.size(-2) == x.size(-2) &&
            batch_count(upstream, 2) == batch_count(x, 2),
        op, ": upstream: expected the shape of x and the type that is computed in");
  check_output(dx, threshold.dtype, x.numel(), device, op, "dx");
  if (dt) check_output(*dt, threshold.dtype, threshold.numel(), device, op, "dt");
}

void cut_off_cpu(const TensorView& x, const TensorView& threshold, const TensorView& out, ThresholdForm form,
                 int threads);
void cut_off_gradient_cpu(const TensorView& upstream, const TensorView& x, const TensorView& threshold,
                          const TensorView& dx, const TensorView* dt, ThresholdForm form, double bandwidth,
                          int threads);

}  // namespace subspan
