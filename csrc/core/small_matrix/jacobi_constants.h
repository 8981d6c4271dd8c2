// What Jacobi's methods on the CPU (jacobi.h) and on the device (core/cuda/jacobi.cuh) have in common.
#pragma once
#include <limits>

namespace subspan {

// When an off-diagonal entry is zero: when it is small beside the whole matrix, or beside its two diagonal entries.
enum class Precision { kNormwise, kRelative };

namespace jacobi {

// A random 32 x 32 matrix takes 7 sweeps in float32 and 9 in float64; one of singular values from 1 to 1e-15 takes 30
// of this order, 45 columns 38, 64 columns 48 and 100 columns 60.
constexpr int kMaxSweeps = 100;

// Squares of squared norms must not underflow: columns shorter than this, beside a largest one of at least 1, are taken
// for rounding errors of the others and stay as they are.
template <class T>
constexpr T kNegligible = sizeof(T) == 4 ? T(1e-9) : T(1e-72);
template <class T>
constexpr T kTiny = sizeof(T) == 4 ? T(2e-38) : T(1e-300);
template <class T>
constexpr T kEpsilon = std::numeric_limits<T>::epsilon();

}  // namespace jacobi
}  // namespace subspan
