// dispatch_float(dtype, "op", [&](auto tag) { using T = typename decltype(tag)::type; ... });
#pragma once
#include "core/check.h"
#include "core/tensor_view.h"

namespace subspan {

template <class T>
struct TypeTag {
  using type = T;
};

template <class Body>
auto dispatch_float(DType dtype, const char* op, Body&& body) {
  switch (dtype) {
    case DType::f32: return body(TypeTag<float>{});
    case DType::f64: return body(TypeTag<double>{});
    default: detail::fail(op, ": expected a float32 or float64 array");
  }
}

}  // namespace subspan
