// The logarithm of a product of many positive numbers with one call of log1p at the end.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/simd.h"

namespace subspan {

// E is a number, or a vector with one product per lane. The product is kept as 2^exponent * (1 + rest) with
// 0 <= rest < 1, so it never overflows, and factors 1 + delta with tiny delta keep their relative accuracy.
template <class T, class E>
class LogProduct {
 public:
  // Multiplies by 1 + delta, delta >= 0. NaN and infinity make the result NaN.
  void multiply_one_plus(E delta) { multiply_normalised(E{} + T(1) + delta, delta); }
  // Multiplies by pivot > 0.
  void multiply(E pivot) { multiply_normalised(pivot, pivot - T(1)); }

  // The logarithm of the product, or of each lane's product.
  E log() const {
    if constexpr (std::is_same_v<T, E>) {
      return std::log1p(rest_) + static_cast<T>(exponent_) * T(kLog2);
    } else {
      return log1p_of(rest_) + __builtin_convertvector(exponent_, E) * T(kLog2);
    }
  }

 private:
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  using BitsE = std::conditional_t<std::is_same_v<T, E>, Bits, Vec<Bits>>;
  static constexpr double kLog2 = 0.69314718055994530942;
  static constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  static constexpr Bits kBias = sizeof(T) == 4 ? 127 : 1023;

  template <class To, class From>
  static To reinterpret(From from) {
    To to;
    static_assert(sizeof to == sizeof from);
    std::memcpy(&to, &from, sizeof to);
    return to;
  }
  static BitsE exponent_of(E value) { return (reinterpret<BitsE>(value) >> kMantissa) - kBias; }
  // value / 2^power
  static E divide_by_power(E value, BitsE power) {
    return value * reinterpret<E>((kBias - power) * (Bits{1} << kMantissa));
  }

  // log(1 + x) = 2 artanh(x / (2 + x)) for 0 <= x < 1, by its series: s <= 1/3, and kTerms terms reach rounding.
  static E log1p_of(E x) {
    constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
    const E s = x / (x + T(2));
    const E square = s * s;
    E sum = E{} + T(1) / T(2 * kTerms - 1);
    for (int k = kTerms - 1; k >= 1; --k) sum = sum * square + T(1) / T(2 * k - 1);
    return T(2) * s * sum;
  }

  // factor = 1 + rest, rounded; where the factor lies in [1, 2) the given rest is more accurate than factor - 1.
  void multiply_normalised(E factor, E rest) {
    // Positive finite factors have exponents -126 ... 127 (float), so halving the power twice never overflows.
    const BitsE power = exponent_of(factor);
    const BitsE half = power / 2;
    const E scaled = divide_by_power(divide_by_power(factor, half), power - half) - T(1);
    rest = power == 0 ? rest : scaled;
    const E sum = rest_ + rest + rest_ * rest;
    const BitsE carry = exponent_of(sum + T(1));
    rest_ = carry == 0 ? sum : divide_by_power(sum + T(1), carry) - T(1);
    exponent_ += power + carry;
    const E finite = factor - factor;  // NaN where the factor is not finite
    rest_ += finite;
  }

  E rest_{};
  BitsE exponent_{};
};

}  // namespace subspan
