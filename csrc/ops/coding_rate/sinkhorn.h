// sinkhorn: diag(u) exp(scores / temperature) diag(v), `iterations` half-steps that in turn make every row sum to 1 and
// every column to rows / columns; the last one is of the rows (Sinkhorn 1967, Cuturi 2013).
//   scores (*batch, k, n) any strides; P (*batch, k, n) packed.
// sinkhorn_gradient: P o (G - rowsum(G o P)) / temperature for the upstream gradient G, which is the derivative of the
// last half-step; with `unrolled` that of all of them.
//   P and G (*batch, k, n) any strides; d_scores (*batch, k, n) packed.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

inline void check_sinkhorn_call(const TensorView& scores, double temperature, index_t iterations, Device device,
                                const char* op) {
  check_input(scores, 2, device, op, "scores");
  CHECK(is_float(scores.dtype), op, ": scores: expected a floating point array");
  CHECK(temperature > 0, op, ": temperature: expected a number > 0, got ", temperature);
  CHECK(iterations > 0, op, ": iterations: expected a positive integer, got ", iterations);
}

inline void check_sinkhorn(const TensorView& scores, const TensorView& P, double temperature, index_t iterations,
                           Device device) {
  check_sinkhorn_call(scores, temperature, iterations, device, "sinkhorn");
  check_output(P, compute_dtype(scores.dtype), scores.numel(), device, "sinkhorn", "P");
}

inline void check_sinkhorn_gradient(const TensorView& scores, const TensorView& P, const TensorView& upstream,
                                    const TensorView& d_scores, double temperature, index_t iterations, Device device) {
  constexpr const char* op = "sinkhorn_gradient";
  check_sinkhorn_call(scores, temperature, iterations, device, op);
  const auto check_like_result = [&](const TensorView& view, const char* name) {
    check_input(view, 2, device, op, name);
    CHECK(view.dtype == compute_dtype(scores.dtype), op, ": ", name, ": wrong dtype");
    CHECK(view.size(-1) == scores.size(-1) && view.size(-2) == scores.size(-2) &&
              batch_count(view, 2) == batch_count(scores, 2),
          op, ": ", name, ": expected the shape of scores");
  };
  check_like_result(P, "P");
  check_like_result(upstream, "upstream");
  check_output(d_scores, compute_dtype(scores.dtype), scores.numel(), device, op, "d_scores");
}

void sinkhorn_cpu(const TensorView& scores, const TensorView& P, double temperature, index_t iterations, int threads);

void sinkhorn_gradient_cpu(const TensorView& scores, const TensorView& P, const TensorView& upstream,
                           const TensorView& d_scores, double temperature, index_t iterations, bool unrolled,
                           int threads);

}  // namespace subspan
