// bfloat16 and float16 as storage types: read, and rounded to, never computed in.
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
inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
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

// To the nearest, ties to even. Branch-free too; NaN stays NaN.
inline void round_to(BFloat16& to, float value) {
  const std::uint32_t bits = detail::bits_of_float(value);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to.bits = static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x7fc0u) : rounded);
}

// Below 2^-14 the sum with 1/2 has the place of the last digit of subnormal numbers, and is rounded there.
inline void round_to(Float16& to, float value) {
  const std::uint32_t bits = detail::bits_of_float(value), magnitude = bits & 0x7fffffffu;
  const std::uint32_t small = detail::bits_of_float(detail::float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const std::uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  std::uint32_t result = magnitude < 0x38800000u ? small : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  to.bits = static_cast<std::uint16_t>((bits >> 16 & 0x8000u) | result);
}

}  // namespace subspan
