// coding_rate: scale * logdet(I + alpha Z^T diag(w) Z), Yu et al. 2020 (MCR2).
//   Z (*batch, n, d) any strides; weights (*batch, n), float64 for float64 Z and else float32; rate (*batch); info
//   (*batch) int32: number of pivots clamped at rounding, -1 for an item that is not finite. alpha = d / (sum_i w_i *
//   eps2) where the given alpha is 0. d_Z (*batch, n, d) and d_weights (*batch, n): gradients of each item's rate,
//   packed.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"
#include "ops/coding_rate/gram_problem.h"

namespace subspan {

struct CodingRateParameters {
  double alpha = 0;
  double eps2 = 0;
  double scale = 0.5;
  Side side = Side::kAuto;
};

inline void check_coding_rate(const TensorView& Z, const TensorView* weights, const TensorView& rate,
                              const TensorView* info, const TensorView* d_Z, const TensorView* d_weights,
                              Device device) {
  constexpr const char* op = "coding_rate";
  check_input(Z, 2, device, op, "Z");
  CHECK(is_float(Z.dtype), op, ": Z: expected a floating point array");
  const std::int64_t items = batch_count(Z, 2);
  if (weights) {
    check_input(*weights, 1, device, op, "weights");
    CHECK(weights->dtype == compute_dtype(Z.dtype), op, ": weights: wrong dtype");
    CHECK(weights->size(-1) == Z.size(-2) && batch_count(*weights, 1) == items, op,
          ": weights: expected one weight per row of Z");
  }
  CHECK(weights || !d_weights, op, ": d_weights: given without weights");
  CHECK(d_Z || !d_weights, op, ": d_weights: given without d_Z");
  check_output(rate, compute_dtype(Z.dtype), items, device, op, "rate");
  if (info) check_output(*info, DType::i32, items, device, op, "info");
  if (d_Z) check_output(*d_Z, compute_dtype(Z.dtype), Z.numel(), device, op, "d_Z");
  if (d_weights) check_output(*d_weights, compute_dtype(Z.dtype), weights->numel(), device, op, "d_weights");
}

void coding_rate_cpu(const TensorView& Z, const TensorView* weights, const TensorView& rate, const TensorView* info,
                     const TensorView* d_Z, const TensorView* d_weights, const CodingRateParameters& parameters,
                     int threads);

}  // namespace subspan
