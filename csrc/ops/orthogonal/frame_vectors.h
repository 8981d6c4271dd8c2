// Frames of as many columns as a vector has entries, read row by row: rows are converted in passing and small matrices
// stay in registers, in the order of the sums of frame.h, whose results these are to the last bit.
#pragma once
#include "core/lookahead.h"
#include "ops/orthogonal/frame.h"

namespace subspan {

template <class T>
inline bool rows_are_vectors(const Frame& frame) {
  return frame.count() == kLanes<double> && frame.column_step() == 1 &&
         frame.dtype() == (sizeof(T) == 4 ? DType::f32 : DType::f64);
}

namespace detail {

template <class T>
inline const T* row_of(const Frame& frame, index_t row) {
  return static_cast<const T*>(frame.data()) + row * frame.row_step();
}

// Few rows at a time, so that the processor multiplies some while it reads the next. They go through memory: an entry
// for all lanes costs nothing there, but a permutation in a register.
constexpr index_t kRowsConverted = 32;

template <class T>
[[gnu::always_inline]] inline void convert_rows(const T* from, index_t step, index_t rows, double* to) {
  for (index_t i = 0; i < rows; ++i, from += step, to += kLanes<double>) {
    __builtin_prefetch(from + kLookahead / sizeof(T), 0, 3);
    store(to, load_double(from));
  }
}

// sums = `Rows` rows of from weights.
template <int Rows>
[[gnu::always_inline]] inline void multiply_rows(const double* from, const Vec<double> (&weights)[kLanes<double>],
                                                 Vec<double> (&sums)[Rows]) {
  constexpr int lanes = kLanes<double>;
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) sums[i] = Vec<double>{};
#pragma GCC unroll 8
  for (int k = 0; k < lanes; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) sums[i] += broadcast(from[i * lanes + k]) * weights[k];
  }
}

template <int Rows, int inputs, class T>
[[gnu::always_inline]] inline void write_rows(const double (&from)[inputs][kRowsConverted * kLanes<double>],
                                              index_t row, const Vec<double> (&weights)[inputs][kLanes<double>], T* to,
                                              index_t step) {
  Vec<double> sums[Rows];
  multiply_rows<Rows>(from[0] + row * kLanes<double>, weights[0], sums);
  if constexpr (inputs == 2) {
    Vec<double> more[Rows];
    multiply_rows<Rows>(from[1] + row * kLanes<double>, weights[1], more);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) sums[i] += more[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    __builtin_prefetch(to + i * step + kLookahead / sizeof(T), 1, 3);
    store_as(to + i * step, sums[i]);
  }
}

}  // namespace detail

// to += left^T right, by one thread; sums of `block` rows are added up in registers.
template <class T>
inline void add_vector_products(const Frame& left, const Frame& right, index_t block, const Dense& to) {
  constexpr int lanes = kLanes<double>;
  alignas(kVectorBytes) double entries[detail::kRowsConverted * lanes];
  const index_t left_step = left.row_step(), right_step = right.row_step();
  each_block(left.length(), block, [&](index_t first, index_t rows) {
    Vec<double> sums[lanes] = {};
    each_block(rows, detail::kRowsConverted, [&](index_t part, index_t count) {
      detail::convert_rows(detail::row_of<T>(left, first + part), left_step, count, entries);
      const T* r = detail::row_of<T>(right, first + part);
      for (index_t i = 0; i < count; ++i) {
        const Vec<double> row = detail::load_double(r + i * right_step);
#pragma GCC unroll 8
        for (int j = 0; j < lanes; ++j) sums[j] += broadcast(entries[i * lanes + j]) * row;
      }
    });
    for (int j = 0; j < lanes; ++j) store(to.row(j), load(to.row(j)) + sums[j]);
  });
}

// to = sum_s from_s weights_s, by one thread. `to` may be one of them.
template <class T, int inputs>
inline void write_vector_product(const Frame (&from)[inputs], const Dense (&weights)[inputs], const Frame& to) {
  constexpr int lanes = kLanes<double>, together = inputs == 1 ? 8 : 4;
  alignas(kVectorBytes) double entries[inputs][detail::kRowsConverted * lanes];
  Vec<double> kept[inputs][lanes];
  for (int s = 0; s < inputs; ++s) {
    for (int k = 0; k < lanes; ++k) kept[s][k] = load(weights[s].row(k));
  }
  const index_t step = to.row_step();
  each_block(to.length(), detail::kRowsConverted, [&](index_t first, index_t rows) {
    for (int s = 0; s < inputs; ++s)
      detail::convert_rows(detail::row_of<T>(from[s], first), from[s].row_step(), rows, entries[s]);
    T* out = static_cast<T*>(to.data()) + first * step;
    index_t i = 0;
    for (; i + together <= rows; i += together, out += together * step)
      detail::write_rows<together, inputs>(entries, i, kept, out, step);
    for (; i < rows; ++i, out += step) detail::write_rows<1, inputs>(entries, i, kept, out, step);
  });
}

}  // namespace subspan
