// sum + weight * value, in one rounding on processors that have it and in two on others, but everywhere the same way:
// left to the compiler, two loops over the same terms may differ in the last bit.
#pragma once
#include "core/simd.h"

namespace subspan {

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
inline float multiply_add(float sum, float weight, float value) { return __builtin_fmaf(weight, value, sum); }
#else
inline float multiply_add(float sum, float weight, float value) { return sum + weight * value; }
#endif

inline Vec<float> multiply_add(Vec<float> sum, Vec<float> weight, Vec<float> value) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)weight, (__m512)value, (__m512)sum);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)weight, (__m256)value, (__m256)sum);
#else
  Vec<float> result;
  for (int i = 0; i < kLanes<float>; ++i) result[i] = multiply_add(sum[i], weight[i], value[i]);
  return result;
#endif
}

}  // namespace subspan
