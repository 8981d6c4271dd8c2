// Vectors of entries that are stored in bfloat16 or float16, widened on the way into a register.
#pragma once
#include "core/half.h"
#include "core/simd.h"

namespace subspan {

inline Vec<float> load_wide(const float* from) { return load(from); }
inline Vec<double> load_wide(const double* from) { return load(from); }

namespace detail {
typedef std::uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));
typedef std::uint32_t WideWords __attribute__((vector_size(kVectorBytes)));
inline WideWords load_words(const void* from) {
  HalfWords words;
  std::memcpy(&words, from, sizeof words);
  return __builtin_convertvector(words, WideWords);
}
}  // namespace detail

inline Vec<float> load_wide(const BFloat16* from) { return (Vec<float>)(detail::load_words(from) << 16); }

// The steps of Float16's conversion, in every lane.
inline Vec<float> load_wide(const Float16* from) {
  const detail::WideWords bits = detail::load_words(from);
  const detail::WideWords sign = (bits & 0x8000u) << 16, magnitude = (bits & 0x7fffu) << 13;
  const auto scaled = (detail::WideWords)((Vec<float>)magnitude * 0x1p112f);
  const auto special = (detail::WideWords)(magnitude >= 0x0f800000u) & 0x7f800000u;
  return (Vec<float>)(scaled | special | sign);
}

// The first `count` lanes; the others are zero.
template <class T, class Stored>
inline Vec<T> load_wide_partial(const Stored* from, index_t count) {
  T lanes[kLanes<T>] = {};
  for (index_t i = 0; i < count; ++i) lanes[i] = static_cast<T>(from[i]);
  return load(lanes);
}

}  // namespace subspan
