// bfloat16 and float16 as storage types: read, never computed in.
#pragma once
#include <cstdint>
#include <cstring>

namespace subspan {

namespace detail {
inline float float_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace detail

struct BFloat16 {
  std::uint16_t bits;
  explicit operator float() const { return detail::float_from_bits(std::uint32_t{bits} << 16); }
  explicit operator double() const { return static_cast<float>(*this); }
};

struct Float16 {
  std::uint16_t bits;
  // Branch-free, so that loops over it vectorise: shift the fields into place and multiply by 2^112 to move the
  // exponent bias from 15 to 127, which also normalises subnormal numbers; then infinities and NaNs get their exponent
  // back.
  explicit operator float() const {
    const std::uint32_t sign = (std::uint32_t{bits} & 0x8000u) << 16;
    const std::uint32_t magnitude = (std::uint32_t{bits} & 0x7fffu) << 13;
    const float scaled = detail::float_from_bits(magnitude) * 0x1p112f;
    std::uint32_t result;
    std::memcpy(&result, &scaled, sizeof result);
    result |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    return detail::float_from_bits(result | sign);
  }
  explicit operator double() const { return static_cast<float>(*this); }
};

// To the nearest float16, ties to even; infinity from 65520 on.
inline Float16 to_float16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};
  if (magnitude >= 0x38800000u) {  // a normal float16: move the bias, and round off 13 bits, which may carry upwards
    const std::uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
  }
  // Below, the last bit is 2^-24, as that of the float32 numbers in [0.5, 1) is: adding 0.5 rounds there.
  const float shifted = detail::float_from_bits(magnitude) + 0.5f;
  std::memcpy(&bits, &shifted, sizeof bits);
  return {static_cast<std::uint16_t>(sign | (bits - 0x3f000000u))};
}

}  // namespace subspan
