// A batch of matrices with any strides: where matrix `index` starts, and the strides inside it. Copied into kernels.
#pragma once
#include <cstdint>

#include "core/cuda/launch.cuh"
#include "core/tensor_view.h"

namespace subspan {

template <class T>
struct MatrixBatch {
  const T* data = nullptr;
  std::int64_t row_stride = 0, col_stride = 0;
  std::int64_t count = 1;
  int dims = 0;  // of the batch, after merging neighbours that one stride can walk
  std::int64_t shape[kMaxDims] = {}, stride[kMaxDims] = {};

  explicit MatrixBatch(const TensorView& view)
      : data(view.ptr<const T>()), row_stride(view.stride[view.ndim - 2]), col_stride(view.stride[view.ndim - 1]) {
    for (int dim = 0; dim < view.ndim - 2; ++dim) {
      count *= view.shape[dim];
      if (view.shape[dim] == 1) continue;
      if (dims > 0 && stride[dims - 1] == view.stride[dim] * view.shape[dim]) {
        shape[dims - 1] *= view.shape[dim];
        stride[dims - 1] = view.stride[dim];
      } else {
        shape[dims] = view.shape[dim];
        stride[dims++] = view.stride[dim];
      }
    }
  }

  __device__ const T* operator[](std::int64_t index) const {
    std::int64_t offset = 0;
#pragma unroll 1
    for (int dim = dims - 1; dim > 0; --dim) {  // a batch that one stride walks costs no division
      offset += index % shape[dim] * stride[dim];
      index /= shape[dim];
    }
    return data + offset + index * stride[0];
  }
};

}  // namespace subspan
