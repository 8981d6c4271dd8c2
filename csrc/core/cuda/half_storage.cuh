// Elements in memory as the type that is computed in: the device's reading of core/half.h.
#pragma once
#include <cstring>

#include "core/cuda/launch.cuh"
#include "core/dispatch.h"
#include "core/half.h"

namespace subspan {

template <class T>
struct ComputeType {
  using type = T;
};
template <>
struct ComputeType<BFloat16> {
  using type = float;
};
template <>
struct ComputeType<Float16> {
  using type = float;
};
template <class Stored>
using Computed = typename ComputeType<Stored>::type;

__device__ inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

__device__ inline float computed(float stored) { return stored; }
__device__ inline double computed(double stored) { return stored; }
__device__ inline float computed(BFloat16 stored) { return float_of_bits(std::uint32_t{stored.bits} << 16); }

// As Float16::operator float, whose comments say why this is right for every value.
__device__ inline float computed(Float16 stored) {
  const std::uint32_t sign = (std::uint32_t{stored.bits} & 0x8000u) << 16;
  const std::uint32_t magnitude = (std::uint32_t{stored.bits} & 0x7fffu) << 13;
  std::uint32_t bits;
  const float scaled = float_of_bits(magnitude) * 0x1p112f;
  std::memcpy(&bits, &scaled, sizeof bits);
  return float_of_bits(bits | (magnitude >= 0x0f800000u ? 0x7f800000u : 0u) | sign);
}

// As dispatch_float, for arrays that may also hold a half type.
template <class Body>
void dispatch_stored(DType dtype, const char* op, Body&& body) {
  switch (dtype) {
    case DType::f16: return body(TypeTag<Float16>{});
    case DType::bf16: return body(TypeTag<BFloat16>{});
    default: return dispatch_float(dtype, op, body);
  }
}

}  // namespace subspan
