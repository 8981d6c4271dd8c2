// Magnitudes and signs of vectors by their bits: NaN has both, so that a product with either is NaN.
#pragma once
#include <limits>

#include "core/pack.h"
#include "core/simd.h"

namespace subspan {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <class T>
inline Vec<T> magnitude(Vec<T> v) {
  return (Vec<T>)((Mask<T>)v & std::numeric_limits<Bits<T>>::max());
}

template <class T>
inline Vec<T> one_where_not_zero(Vec<T> v) {
  return (Vec<T>)((v != T(0)) & (Mask<T>)broadcast<T>(1));
}

// -1, 0 or 1; of NaN one of the first and the last.
template <class T>
inline Vec<T> sign(Vec<T> v) {
  return (Vec<T>)((Mask<T>)one_where_not_zero<T>(v) | ((Mask<T>)v & std::numeric_limits<Bits<T>>::min() & (v != T(0))));
}

}  // namespace subspan
