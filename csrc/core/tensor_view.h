// A borrowed, framework-neutral view of one array argument. Plain data: safe to copy into a kernel.
#pragma once
#include <cstdint>

namespace subspan {

using index_t = std::int64_t;

constexpr int kMaxDims = 8;
enum class DType : std::uint8_t { f32, f64, f16, bf16, i32, i64, other };
enum class Device : std::uint8_t { cpu, cuda, other };

struct TensorView {
  void* data = nullptr;  // first element, byte offset applied
  std::int64_t shape[kMaxDims] = {};
  std::int64_t stride[kMaxDims] = {};  // in elements
  std::int32_t ndim = 0;
  std::int32_t device_id = 0;
  DType dtype = DType::other;
  Device device = Device::other;

  template <class T>
  T* ptr() const {
    return static_cast<T*>(data);
  }
  std::int64_t numel() const {
    std::int64_t count = 1;
    for (int i = 0; i < ndim; ++i) count *= shape[i];
    return count;
  }
  // Sizes and strides counted from the last dimension: size(-1) is the number of columns of a matrix.
  std::int64_t size(int from_end) const { return shape[ndim + from_end]; }
  std::int64_t step(int from_end) const { return stride[ndim + from_end]; }
};

}  // namespace subspan
