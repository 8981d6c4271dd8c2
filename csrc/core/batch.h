// Leading batch dimensions of a view, walked as one linear index.
#pragma once
#include "core/tensor_view.h"

namespace subspan {

// `core` trailing dimensions belong to the op, all before them are batch.
inline index_t batch_count(const TensorView& view, int core) {
  index_t count = 1;
  for (int i = 0; i < view.ndim - core; ++i) count *= view.shape[i];
  return count;
}

// Offset in elements of batch item `item`; any strides, so expanded (stride 0) batches cost nothing.
inline index_t batch_offset(const TensorView& view, int core, index_t item) {
  index_t offset = 0;
  for (int i = view.ndim - core - 1; i >= 0; --i) {
    offset += item % view.shape[i] * view.stride[i];
    item /= view.shape[i];
  }
  return offset;
}

inline index_t element_size(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    default: return 2;
  }
}

inline const void* batch_item(const TensorView& view, int core, index_t item) {
  return static_cast<const char*>(view.data) + batch_offset(view, core, item) * element_size(view.dtype);
}

}  // namespace subspan
