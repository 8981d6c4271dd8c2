// One step of a pursuit once its atom is known. All kernels take it here, so that a coefficient has the same bits
// however its atom was found.
#pragma once
#include "core/pack.h"

namespace subspan {

template <class T>
T dot(const T* a, const T* b, index_t count) {
  constexpr index_t lanes = kLanes<T>, kSums = 4;
  Vec<T> sums[kSums] = {};
  index_t i = 0;
  for (; i + kSums * lanes <= count; i += kSums * lanes) {
#pragma GCC unroll 4
    for (index_t s = 0; s < kSums; ++s) sums[s] += load(a + i + s * lanes) * load(b + i + s * lanes);
  }
  for (; i + lanes <= count; i += lanes) sums[0] += load(a + i) * load(b + i);
  if (i < count) sums[1] += load_partial(a + i, count - i) * load_partial(b + i, count - i);
  const Vec<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  T total = 0;
  for (index_t lane = 0; lane < lanes; ++lane) total += sum[lane];
  return total;
}

// to += factor * from
template <class T>
void add_scaled(T* to, T factor, const T* from, index_t count) {
  for (index_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

// The coefficient of `atom` in the residual, from which its part is taken away. Infinity becomes NaN.
template <class T>
T take_step(T* residual, const T* atom, index_t length, bool relu) {
  T value = dot(residual, atom, length);
  if (relu && value <= 0) value = 0;
  value += value - value;
  add_scaled(residual, -value, atom, length);
  return value;
}

// Row `row` of an array, copied in the type that is computed in.
template <class T>
void read_row(const Rows<T>& rows, index_t row, index_t length, T* to) {
  const T* from = rows.read(row, 0, length, to);
  if (from != to) std::copy_n(from, length, to);
}

template <class T>
Rows<T> rows_of(const TensorView& array, index_t item) {
  return Rows<T>(batch_item(array, 2, item), array.dtype, array.step(-2), array.step(-1));
}

// body(item, threads) for every item of `flops` each, items side by side where they are as many as threads.
template <class Body>
void for_each_pursuit(index_t items, double flops, int threads, Body&& body) {
  if (items >= threads) {
    parallel_for(items, useful_threads(static_cast<double>(items) * flops, threads), [&](index_t i) { body(i, 1); });
  } else {
    for (index_t i = 0; i < items; ++i) body(i, useful_threads(flops, threads));
  }
}

}  // namespace subspan
