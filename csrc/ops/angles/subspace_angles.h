// Principal angles between the spans of pairs of bases, and functions of them.
//   A (*batch, n, p), B (*batch, n, q): bases as columns, any strides, one batch shape. r = min(p, q).
//   values: (*batch, r) angles or cosines, or (*batch) of a function of all angles; info (*batch) int32: how many
//   angles the ranks of A and B leave, min(rank A, rank B), or -1 for an item that is not finite.
//   left (*batch, n, r), right (*batch, n, r): principal vectors in the spans of A and B.
// The gradient takes an upstream gradient in the shape of values and gives d_A (*batch, n, p) and d_B (*batch, n, q).
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

// What is computed of the angles theta; Python's `_angle_functions.py` has the same numbers.
enum class AngleFunction {
  kAngles,
  kCosines,
  kGeodesic,
  kChordal,
  kProjection,
  kProcrustes,
  kFubiniStudy,
  kBinetCauchy,
  kAsimov,
  kSpectral,
  kGap,
  kMartin,
  kMeanSquaredCosine,
  kLargestCosine,
  kOverlap
};

struct AngleParameters {
  AngleFunction function;
  bool squared;      // the square of a distance
  bool padded;       // angles of pi / 2 for the |p - q| dimensions that have no partner
  bool orthonormal;  // the columns of A and B are taken for orthonormal as they are
  double rank_tol;   // relative to a column's norm, see orthonormalize
};

inline bool per_angle(AngleFunction function) {
  return function == AngleFunction::kAngles || function == AngleFunction::kCosines;
}

inline void check_bases(const TensorView& A, const TensorView& B, Device device, const char* op) {
  check_input(A, 2, device, op, "A");
  check_input(B, 2, device, op, "B");
  CHECK(is_float(A.dtype), op, ": A: expected a floating point array");
  CHECK(B.dtype == A.dtype, op, ": B: expected the dtype of A");
  CHECK(A.size(-2) == B.size(-2), op, ": B: expected ", A.size(-2), " rows as in A, got ", B.size(-2));
  CHECK(A.ndim == B.ndim, op, ": B: expected the batch dimensions of A");
  for (int i = 0; i < A.ndim - 2; ++i) CHECK(A.shape[i] == B.shape[i], op, ": B: expected the batch dimensions of A");
}

inline void check_subspace_angles(const TensorView& A, const TensorView& B, const TensorView& values,
                                  const TensorView* info, const TensorView* left, const TensorView* right,
                                  const AngleParameters& parameters, Device device) {
  constexpr const char* op = "principal_angles";
  check_bases(A, B, device, op);
  const index_t items = batch_count(A, 2), angles = std::min(A.size(-1), B.size(-1));
  const DType dtype = compute_dtype(A.dtype);
  check_output(values, dtype, per_angle(parameters.function) ? items * angles : items, device, op, "values");
  if (info) check_output(*info, DType::i32, items, device, op, "info");
  CHECK((left == nullptr) == (right == nullptr), op, ": left: expected with right, or neither");
  if (left) check_output(*left, dtype, items * A.size(-2) * angles, device, op, "left");
  if (right) check_output(*right, dtype, items * A.size(-2) * angles, device, op, "right");
}

inline void check_subspace_angles_gradient(const TensorView& A, const TensorView& B, const TensorView& upstream,
                                           const TensorView& d_A, const TensorView& d_B,
                                           const AngleParameters& parameters, Device device) {
  constexpr const char* op = "principal_angles";
  check_bases(A, B, device, op);
  const int own = per_angle(parameters.function) ? 1 : 0;
  check_input(upstream, own, device, op, "upstream");
  CHECK(upstream.dtype == compute_dtype(A.dtype), op, ": upstream: wrong dtype");
  CHECK(upstream.ndim == A.ndim - 2 + own, op, ": upstream: expected the batch dimensions of A");
  for (int i = 0; i < A.ndim - 2; ++i)
    CHECK(upstream.shape[i] == A.shape[i], op, ": upstream: expected the batch dimensions of A");
  if (own) CHECK(upstream.size(-1) == std::min(A.size(-1), B.size(-1)), op, ": upstream: expected one entry per angle");
  check_output(d_A, compute_dtype(A.dtype), A.numel(), device, op, "d_A");
  check_output(d_B, compute_dtype(B.dtype), B.numel(), device, op, "d_B");
}

void subspace_angles_cpu(const TensorView& A, const TensorView& B, const TensorView& values, const TensorView* info,
                         const TensorView* left, const TensorView* right, const AngleParameters& parameters,
                         int threads);
void subspace_angles_gradient_cpu(const TensorView& A, const TensorView& B, const TensorView& upstream,
                                  const TensorView& d_A, const TensorView& d_B, const AngleParameters& parameters,
                                  int threads);

}  // namespace subspan
