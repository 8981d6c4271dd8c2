// muon_step: one step of Muon on matrices W (*batch, m, n) with gradients G and momentum B, in place:
//   B <- B + (1 - momentum) (G - B);   U = G + momentum (B - G) by Nesterov, or B;
//   W <- kept W - rate NS(U / max(|U|, least_norm)), with the iteration of newton_schulz.
// Packed arrays of one type each, float32 or float64; any number of any shapes in one call. A matrix is brought up to
// date by the threads that iterate it, while it is in their caches.
#pragma once
#include <vector>

#include "ops/orthogonal/newton_schulz.h"

namespace subspan {

struct MuonArrays {
  TensorView W, G, B;
  double rate = 0, kept = 1, momentum = 0;
  bool nesterov = true;
};

inline void check_muon_step(const MuonArrays& arrays, Device device) {
  constexpr const char* op = "Muon";
  check_input(arrays.W, 2, device, op, "W");
  const DType dtype = arrays.W.dtype;
  CHECK(dtype == DType::f32 || dtype == DType::f64, op, ": W: expected a float32 or float64 array");
  check_output(arrays.W, dtype, arrays.W.numel(), device, op, "W");
  check_output(arrays.G, dtype, arrays.W.numel(), device, op, "gradient");
  check_output(arrays.B, dtype, arrays.W.numel(), device, op, "buffer");
}

void muon_step_cpu(const std::vector<MuonArrays>& arrays, const std::vector<OddPolynomial>& polynomials,
                   double least_norm, int threads);

}  // namespace subspan
