// Memory-safety checks shared by the ops. The messages users see come from the Python shape rules; these keep a wrong
// call of the compiled functions from reading or writing out of bounds.
#pragma once
#include "core/check.h"
#include "core/tensor_view.h"

namespace subspan {

inline bool is_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::f16 || dtype == DType::bf16;
}

// The type results are computed in: float64 for float64, otherwise float32.
inline DType compute_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

inline bool is_packed(const TensorView& view) {
  std::int64_t expected = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    if (view.shape[i] != 1 && view.stride[i] != expected) return false;
    expected *= view.shape[i];
  }
  return true;
}

// An output: allocated by the caller, packed, of the given type and number of elements.
inline void check_output(const TensorView& view, DType dtype, std::int64_t elements, Device device, const char* op,
                         const char* name) {
  CHECK(view.device == device, op, ": ", name, ": wrong device");
  CHECK(view.dtype == dtype, op, ": ", name, ": wrong dtype");
  CHECK(view.numel() == elements, op, ": ", name, ": expected ", elements, " elements, got ", view.numel());
  CHECK(elements == 0 || is_packed(view), op, ": ", name, ": expected a packed array");
}

// An input with at least `core` dimensions.
inline void check_input(const TensorView& view, int core, Device device, const char* op, const char* name) {
  CHECK(view.device == device, op, ": ", name, ": wrong device");
  CHECK(view.ndim >= core, op, ": ", name, ": expected at least ", core, " dimensions, got ", view.ndim);
}

}  // namespace subspan
