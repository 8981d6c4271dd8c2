// Powers of two of a vector, the exponential that everything here is written in: its range reduction is exact.
#pragma once
#include "core/simd.h"

namespace subspan {

namespace detail {

// Minimax polynomials of 2^r for |r| <= 1/2, relative error below 2e-9 and 4e-18: a sixtieth of a rounding.
template <class T>
struct Exp2;

template <>
struct Exp2<float> {
  using Bits = std::uint32_t;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kCoefficients[] = {1.0f,           0.693147206f,   0.240226469f,   0.0555032878f,
                                            0.00961848896f, 0.00133999312f, 0.000153458122f};
};

template <>
struct Exp2<double> {
  using Bits = std::uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kCoefficients[] = {1.0,
                                             0.69314718055994533046,
                                             0.24022650695910156204,
                                             0.055504108664819921605,
                                             0.0096181291075883352443,
                                             0.0013333558146789921722,
                                             0.00015403530462514432062,
                                             0.000015252733489988525649,
                                             1.321543308967639918e-6,
                                             1.0178198021671930844e-7,
                                             7.0741056135081427963e-9,
                                             4.4352827069572771511e-10};
};

}  // namespace detail

// 2^x within one unit in the last place, for x < 127 (double: 1023); 0 where that would be below the smallest normal
// number, NaN for NaN.
template <class T>
inline Vec<T> exp2(Vec<T> x) {
  using Of = detail::Exp2<T>;
  using Bits = Vec<typename Of::Bits>;
  // Adding 1.5 * 2^mantissa rounds x to an integer and leaves it, biased, in the low bits, from where a shift makes it
  // the exponent of a number.
  constexpr T shifter = static_cast<T>(typename Of::Bits{3} << (Of::kMantissa - 1)) + static_cast<T>(Of::kBias);
  const Vec<T> shifted = x + shifter;
  const Vec<T> fraction = x - (shifted - shifter);
  Bits exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent <<= Of::kMantissa;
  Vec<T> scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  constexpr int degree = sizeof(Of::kCoefficients) / sizeof(T) - 1;
  Vec<T> power = broadcast(Of::kCoefficients[degree]);
#pragma GCC unroll 12
  for (int i = degree - 1; i >= 0; --i) power = power * fraction + Of::kCoefficients[i];
  return x < T(1 - Of::kBias) ? Vec<T>{} : power * scale;
}

}  // namespace subspan
