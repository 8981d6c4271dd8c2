// Stores that pass the caches by: a large result that nobody reads soon is written without being read from memory
// first.
#pragma once
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "core/simd.h"

namespace subspan {

// `to` must be aligned to a vector.
inline void stream(float* to, Vec<float> v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(to, (__m128)v);
#else
  store(to, v);
#endif
}
inline void stream(double* to, Vec<double> v) {
#if defined(__AVX512F__)
  _mm512_stream_pd(to, (__m512d)v);
#elif defined(__AVX2__)
  _mm256_stream_pd(to, (__m256d)v);
#elif defined(__SSE2__)
  _mm_stream_pd(to, (__m128d)v);
#else
  store(to, v);
#endif
}

// Between a thread's last such store and the moment another reads.
inline void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// How many entries lie before the next whole vector.
template <class T>
inline index_t entries_to_alignment(const T* at) {
  const auto past = reinterpret_cast<std::uintptr_t>(at) % kVectorBytes;
  return past == 0 ? 0 : static_cast<index_t>((kVectorBytes - past) / sizeof(T));
}

}  // namespace subspan
