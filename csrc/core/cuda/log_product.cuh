// The determinant from its pivots: a product that cannot overflow, one logarithm at the end, and the status.
#pragma once
#include <cmath>

#include "core/cuda/launch.cuh"

namespace subspan {

// A positive product as 2^exponent * (1 + excess) with 1 + excess in [1/sqrt(2), sqrt(2)). The excess is never rounded
// against 1, so a product near one keeps the relative accuracy of its logarithm: log(I + A) of a tiny A is right to the
// last digits although 1 + trace(A) is not.
template <class T>
struct LogProduct {
  T excess = 0;
  int exponent = 0;

  static constexpr T kRootTwo = T(1.4142135623730950488);

  // value > 0
  __device__ static LogProduct of(T value) {
    LogProduct p;
    T mantissa = std::frexp(value, &p.exponent);  // in [1/2, 1), also for a subnormal value
    if (mantissa < kRootTwo / 2) {
      mantissa *= 2;
      --p.exponent;
    }
    p.excess = mantissa - 1;  // exact
    return p;
  }

  // 1 + delta, delta >= 0
  __device__ static LogProduct of_one_plus(T delta) {
    if (delta >= kRootTwo - 1) return of(1 + delta);
    LogProduct p;
    p.excess = delta;
    return p;
  }

  __device__ void multiply(const LogProduct& other) {
    exponent += other.exponent;
    excess += other.excess + excess * other.excess;
    if (excess >= kRootTwo - 1) {
      excess = (excess - 1) / 2;
      ++exponent;
    } else if (excess < kRootTwo / 2 - 1) {
      excess = 2 * excess + 1;
      --exponent;
    }
  }

  __device__ T log() const {
    return static_cast<T>(exponent * 0.693147180559945309417 + static_cast<double>(std::log1p(excess)));
  }
};

// What one matrix reports about its pivots. With `implicit_identity` a recorded pivot is the Schur complement `delta`
// of A, and the true pivot of I + A is 1 + max(delta, 0): exact arithmetic has delta >= 0, rounding may not.
template <class T>
struct PivotSummary {
  static constexpr int kNone = std::numeric_limits<int>::max();

  LogProduct<T> product;
  int first_bad = kNone;  // 0-based. Every pivot after a bad one is garbage, so the smallest index is the true one
  int clamped = 0;

  __device__ void add(T pivot, int index, bool implicit_identity) {
    const bool finite = pivot - pivot == 0;  // false for NaN and for both infinities
    const bool bad = !finite || (!implicit_identity && !(pivot > 0));
    if (bad) {
      first_bad = index < first_bad ? index : first_bad;
    } else if (implicit_identity) {
      clamped += pivot < 0;
      product.multiply(LogProduct<T>::of_one_plus(pivot > 0 ? pivot : T(0)));
    } else {
      product.multiply(LogProduct<T>::of(pivot));
    }
  }

  // Combines the summaries of each aligned group of `Lanes` lanes. The order is fixed, so the first lane's result is
  // the same in every run; the other lanes' products may differ from it in the last bit.
  template <int Lanes>
  __device__ void combine() {
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) {
      LogProduct<T> other;
      other.excess = __shfl_xor_sync(kAllLanes, product.excess, step);
      other.exponent = __shfl_xor_sync(kAllLanes, product.exponent, step);
      product.multiply(other);
      const int other_bad = __shfl_xor_sync(kAllLanes, first_bad, step);
      first_bad = other_bad < first_bad ? other_bad : first_bad;
      clamped += __shfl_xor_sync(kAllLanes, clamped, step);
    }
  }

  __device__ bool failed() const { return first_bad != kNone; }
  __device__ T logdet() const { return failed() ? kNaN<T> : product.log(); }
  __device__ int info(bool implicit_identity) const {
    if (implicit_identity) return failed() ? -1 : clamped;
    return failed() ? first_bad + 1 : 0;
  }
};

// 1 / sqrt of the true pivot; NaN where a plain pivot is not positive. A NaN delta is treated as 0 here: the summary
// has recorded it and the item is lost anyway.
template <class T>
__device__ T inverse_root_of_pivot(T pivot, bool implicit_identity) {
  return reciprocal_sqrt(implicit_identity ? (pivot > 0 ? 1 + pivot : T(1)) : pivot);
}

}  // namespace subspan
