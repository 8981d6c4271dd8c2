// The activations of adapters and their derivatives, of whole vectors. All are x times a distribution function:
//   relu   x [x > 0]
//   gelu   x Phi(x), Phi the normal distribution
//   gelu_tanh  x s(2 v) = x (1 + tanh v) / 2 with v = sqrt(2 / pi) (x + 0.044715 x^3), s the logistic function
//   silu   x s(x)
#pragma once
#include "core/exp.h"

namespace subspan {

enum class Activation { kRelu, kGelu, kGeluTanh, kSilu };
constexpr int kActivations = 4;

namespace detail {

// Chebyshev coefficients in u = 2 t - 1 of exp(z^2) erfc(z) / t with t = 3 / (3 + z), z >= 0; what is left out is below
// 3e-10 and 1e-17.
template <class T>
struct Erfc;
template <>
struct Erfc<float> {
  static constexpr float kCoefficients[] = {0.471146075f,    0.37715895f,     0.118036033f,    0.0283623467f,
                                            0.00487175776f,  0.000459852388f, -2.14302224e-5f, -1.30144737e-5f,
                                            -8.80928358e-7f, 2.74648005e-7f,  4.4159919e-8f,   -6.39840839e-9f,
                                            -1.67683572e-9f};
};
template <>
struct Erfc<double> {
  static constexpr double kCoefficients[] = {
      0.47114607466029065,     0.37715894969156579,    0.11803603344749545,    0.028362346699695152,
      0.0048717577576055464,   0.00045985238787654428, -2.1430222381053152e-5, -1.3014473699241349e-5,
      -8.8092835828535136e-7,  2.7464800479702845e-7,  4.4159918992237855e-8,  -6.3984083855754828e-9,
      -1.6768357212484644e-9,  1.9473354700890024e-10, 6.2474413034693895e-11, -8.1245575522444957e-12,
      -2.3303146132225657e-12, 4.191038539225333e-13,  8.1933352688130299e-14, -2.3352472107929263e-14,
      -2.2442585649165364e-15, 1.2811435298050506e-15, 1.1054582965396302e-18, -6.4457951356490397e-17};
};

template <class T>
struct Point {
  Vec<T> value, slope;
};

template <class T>
inline Point<T> gelu(Vec<T> x) {
  constexpr T half_log2e = T(0.72134752044448170368), sqrt_half = T(0.70710678118654752440);
  constexpr T inverse_sqrt_2pi = T(0.39894228040143267794);
  const Vec<T> z = (x < T(0) ? -x : x) * sqrt_half;
  const Vec<T> t = T(3) / (z + T(3));
  const Vec<T> u = t + t - T(1), twice = u + u;
  const auto& coefficients = Erfc<T>::kCoefficients;
  constexpr int last = sizeof(coefficients) / sizeof(T) - 1;
  Vec<T> sum = broadcast(coefficients[last]), previous{};
#pragma GCC unroll 24
  for (int i = last - 1; i >= 1; --i) {
    const Vec<T> next = twice * sum - previous + coefficients[i];
    previous = sum, sum = next;
  }
  const Vec<T> decay = exp2<T>(-x * x * half_log2e);
  const Vec<T> tail = (u * sum - previous + coefficients[0]) * t * decay * T(0.5);
  const Vec<T> phi = x < T(0) ? tail : T(1) - tail;
  return {x * phi, phi + x * (decay * inverse_sqrt_2pi)};
}

// x s(v), and its derivative where that of v is `dv`.
template <class T>
inline Point<T> gated(Vec<T> x, Vec<T> v, Vec<T> dv) {
  constexpr T log2e = T(1.44269504088896340736);
  const Vec<T> decay = exp2<T>((v < T(0) ? v : -v) * log2e);
  const Vec<T> larger = T(1) / (decay + T(1)), smaller = decay * larger;
  const Vec<T> gate = v < T(0) ? smaller : larger;
  return {x * gate, gate + x * (larger * smaller) * dv};
}

}  // namespace detail

template <class T>
inline detail::Point<T> activate(Activation activation, Vec<T> x) {
  switch (activation) {
    case Activation::kRelu: return {x < T(0) ? Vec<T>{} : x, x > T(0) ? broadcast(T(1)) : x * T(0)};
    case Activation::kGelu: return detail::gelu<T>(x);
    case Activation::kGeluTanh: {
      constexpr T twice = T(1.59576912160573071176), cubic = T(0.044715);  // twice sqrt(2 / pi)
      const Vec<T> square = x * x;
      return detail::gated<T>(x, x * (square * cubic + T(1)) * twice, (square * (3 * cubic) + T(1)) * twice);
    }
    default: return detail::gated<T>(x, x, broadcast(T(1)));
  }
}

}  // namespace subspan
