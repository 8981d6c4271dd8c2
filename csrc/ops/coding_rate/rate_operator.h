// rate_operator: alpha (I + alpha Z^T Z)^{-1}, the operators E and C_j of ReduNet (Chan et al. 2022).
//   Z (*batch, n, d) any strides; result (*batch, d, d) packed.
#pragma once
#include "core/check_view.h"

namespace subspan {

inline void check_rate_operator(const TensorView& Z, const TensorView& result, Device device) {
  constexpr const char* op = "rate_operator";
  check_input(Z, 2, device, op, "Z");
  CHECK(is_float(Z.dtype), op, ": Z: expected a floating point array");
  check_output(result, compute_dtype(Z.dtype), batch_count(Z, 2) * Z.size(-1) * Z.size(-1), device, op, "result");
}

void rate_operator_cpu(const TensorView& Z, const TensorView& result, double alpha, int threads);

}  // namespace subspan
