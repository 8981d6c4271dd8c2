// affine_product: scale A B^T + E, the dense product that layers are made of, for any strides: a transposed operand is
// a view. On the CPU only, where the micro-kernel is measured to be faster than the framework's product.
//   A (*batch, m, k), B (*batch, n, k), E (*batch, m, n) or absent, any strides; result (*batch, m, n) packed. B and E
//   are of the type computed in.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

struct AffineParameters {
  double scale = 1, shift = 0;
  bool relu = false;
};

inline void check_affine_product(const TensorView& A, const TensorView& B, const TensorView* E,
                                 const TensorView& result, Device device) {
  constexpr const char* op = "affine_product";
  check_input(A, 2, device, op, "A");
  CHECK(is_float(A.dtype), op, ": A: expected a floating point array");
  check_input(B, 2, device, op, "B");
  CHECK(B.dtype == compute_dtype(A.dtype), op, ": B: expected the type that is computed in");
  const std::int64_t items = batch_count(A, 2);
  CHECK(B.size(-1) == A.size(-1) && batch_count(B, 2) == items, op, ": B: expected rows as long as those of A");
  if (E) {
    check_input(*E, 2, device, op, "E");
    CHECK(E->dtype == B.dtype && E->size(-2) == A.size(-2) && E->size(-1) == B.size(-2) && batch_count(*E, 2) == items,
          op, ": E: expected the shape of the product");
  }
  check_output(result, B.dtype, items * A.size(-2) * B.size(-2), device, op, "result");
}

void affine_product_cpu(const TensorView& A, const TensorView& B, const TensorView* E, const TensorView& result,
                        const AffineParameters& parameters, int threads);

}  // namespace subspan
