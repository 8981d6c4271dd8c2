// scores[document] += weight * value for the postings of a list: the inner loop of a search.
//
// Short lists go from id to id, eight at a time: ids of a list differ, so eight scores are loaded, then updated, then
// stored, which the compiler cannot know and which is 1.6 times faster; gathers and scatters of AVX-512 are slower than
// that on Zen 4 and 5 and as fast on Intel. Long lists are bitmaps: each vector of scores takes its values from the
// packed ones by an expanding permutation, at 0.07 ns for every document of the window, posting or not.
#pragma once
#include "core/simd.h"
#include "ops/search/index_window.h"
#include "ops/search/multiply_add.h"

namespace subspan {

template <ValueType type>
struct StoredType;
template <>
struct StoredType<ValueType::f32> {
  using T = float;
};
template <>
struct StoredType<ValueType::f16> {
  using T = Float16;
};
template <>
struct StoredType<ValueType::u8> {
  using T = std::uint8_t;
};

// kLanes<float> values from memory of any alignment.
template <ValueType type>
inline Vec<float> load_values(const typename StoredType<type>::T* from) {
  if constexpr (type == ValueType::f32) {
    return load(from);
  } else if constexpr (type == ValueType::f16) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__) && defined(__F16C__)
    return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Vec<float> v;
    for (int i = 0; i < kLanes<float>; ++i) v[i] = static_cast<float>(from[i]);
    return v;
#endif
  } else {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (Vec<float>)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return (Vec<float>)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
#else
    Vec<float> v;
    for (int i = 0; i < kLanes<float>; ++i) v[i] = static_cast<float>(from[i]);
    return v;
#endif
  }
}

template <ValueType type>
inline void accumulate_ids(const std::uint16_t* ids, const typename StoredType<type>::T* values, index_t count,
                           float weight, float* scores) {
  constexpr int block = 8;
  index_t i = 0;
  for (; i + block <= count; i += block) {
    float stored[kLanes<float> > block ? kLanes<float> : block];
    const float* value = stored;
    if constexpr (type == ValueType::f32) {
      value = values + i;
    } else {
      for (int k = 0; k < block; k += kLanes<float>) store(stored + k, load_values<type>(values + i + k));
    }
    float sum[block];
#pragma GCC unroll 8
    for (int k = 0; k < block; ++k) sum[k] = multiply_add(scores[ids[i + k]], weight, value[k]);
#pragma GCC unroll 8
    for (int k = 0; k < block; ++k) scores[ids[i + k]] = sum[k];
  }
  for (; i < count; ++i) scores[ids[i]] = multiply_add(scores[ids[i]], weight, static_cast<float>(values[i]));
}

#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__BMI2__))
// Lane i has the packed value whose number is the number of set bits of `mask` below bit i, or 0 where bit i is not
// set.
inline Vec<float> expand(Vec<float> packed, unsigned mask) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_maskz_expand_ps(static_cast<__mmask16>(mask), (__m512)packed);
#else
  const std::uint64_t bytes = _pdep_u64(mask, 0x0101010101010101u) * 0xffu;
  const std::uint64_t places = _pdep_u64(0x0706050403020100u, bytes);
  const __m256i from = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(places)));
  const __m256i keep = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
  return (Vec<float>)_mm256_and_ps(_mm256_permutevar8x32_ps((__m256)packed, from), _mm256_castsi256_ps(keep));
#endif
}

template <ValueType type>
inline void accumulate_bitmap(const std::uint16_t* ids, const typename StoredType<type>::T* values, index_t documents,
                              float weight, float* scores) {
  constexpr int lanes = kLanes<float>;
  const Vec<float> factor = broadcast(weight);
  for (index_t word = 0; word < bitmap_words(documents); ++word) {
    std::uint64_t bits;
    std::memcpy(&bits, ids + 4 * word, sizeof bits);
    float* to = scores + 64 * word;
#pragma GCC unroll 8
    for (int lane = 0; lane < 64; lane += lanes) {
      // Counted from the word's start, not from vector to vector, which would be a chain of additions.
      const int before = __builtin_popcountll(bits & ((std::uint64_t{1} << lane) - 1));
      const auto mask = static_cast<unsigned>(bits >> lane) & ((1u << lanes) - 1);
      store(to + lane, multiply_add(load(to + lane), factor, expand(load_values<type>(values + before), mask)));
    }
    values += __builtin_popcountll(bits);
  }
}
#else
template <ValueType type>
inline void accumulate_bitmap(const std::uint16_t* ids, const typename StoredType<type>::T* values, index_t documents,
                              float weight, float* scores) {
  for (index_t word = 0; word < bitmap_words(documents); ++word) {
    std::uint64_t bits;
    std::memcpy(&bits, ids + 4 * word, sizeof bits);
    for (; bits != 0; bits &= bits - 1) {
      float& score = scores[64 * word + __builtin_ctzll(bits)];
      score = multiply_add(score, weight, static_cast<float>(*values++));
    }
  }
}
#endif

// `scores` has room for the documents of the window rounded up to 64.
template <ValueType type>
inline void accumulate(const PostingList& list, index_t documents, float weight, float* scores) {
  const auto* values = reinterpret_cast<const typename StoredType<type>::T*>(list.values);
  if (list.bitmap) {
    accumulate_bitmap<type>(list.ids, values, documents, weight, scores);
  } else {
    accumulate_ids<type>(list.ids, values, list.count, weight, scores);
  }
}

}  // namespace subspan
