// Gram matrix of few long rows as dot products: no packing, and tiles so small that symmetry saves nearly half.
#pragma once
#include "core/pack.h"

namespace subspan {

namespace detail {

constexpr int kDotRows = 4;

// The sums over the lanes of kDotRows * kDotRows accumulators, kLanes of them by one transposition.
template <class T>
inline void sum_lanes(const Vec<T> (&sums)[kDotRows][kDotRows], T (&dots)[kDotRows][kDotRows]) {
  constexpr int lanes = kLanes<T>;
  const Vec<T>* all = &sums[0][0];
  for (int first = 0; first < kDotRows * kDotRows; first += lanes) {
    Vec<T> square[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) square[i] = all[first + i];
    transpose_square<T>(square);
    Vec<T> total = square[0];
#pragma GCC unroll 16
    for (int i = 1; i < lanes; ++i) total += square[i];
    store(&dots[0][0] + first, total);
  }
}

// dots[a][b] = <left[a], right[b]> over `length` entries.
template <class T>
inline void dot_tile(const T* const (&left)[kDotRows], const T* const (&right)[kDotRows], index_t length,
                     T (&dots)[kDotRows][kDotRows]) {
  Vec<T> sums[kDotRows][kDotRows] = {};
  const auto step = [&](auto&& read) {
    Vec<T> l[kDotRows], r[kDotRows];
#pragma GCC unroll 4
    for (int a = 0; a < kDotRows; ++a) l[a] = read(left[a]);
#pragma GCC unroll 4
    for (int b = 0; b < kDotRows; ++b) r[b] = read(right[b]);
#pragma GCC unroll 4
    for (int a = 0; a < kDotRows; ++a) {
#pragma GCC unroll 4
      for (int b = 0; b < kDotRows; ++b) sums[a][b] += l[a] * r[b];
    }
  };
  index_t k = 0;
  for (; k + kLanes<T> <= length; k += kLanes<T>) step([k](const T* row) { return load(row + k); });
  if (k < length) step([k, length](const T* row) { return load_partial(row + k, length - k); });
  sum_lanes<T>(sums, dots);
}

}  // namespace detail

// gram.at(k, i) = scale * <row k, row i> for k <= i < count; the rest of the rows of `gram` up to whole row tiles is
// zero. Tiles are dealt to the team, which must wait afterwards. `converted`: count * length entries, used where rows
// cannot be read in place, one copy per member.
template <class T>
void row_dots(const Rows<T>& rows, index_t count, index_t length, T scale, const Panels<T>& gram, T* converted,
              Team team) {
  constexpr index_t tile = detail::kDotRows;
  const auto row = [&](index_t i) { return rows.read(i, 0, length, converted + i * length); };
  Workspace workspace;
  const T** in = workspace.take<const T*>(count);
  for (index_t i = 0; i < count; ++i) in[i] = row(i);
  index_t turn = 0;
  for (index_t i0 = 0; i0 < round_up(count, kTileRows); i0 += tile) {
    for (index_t k0 = 0; k0 <= i0; k0 += tile, ++turn) {
      if (turn % team.size() != team.rank()) continue;
      const T *left[tile], *right[tile];
      for (index_t a = 0; a < tile; ++a) {
        left[a] = in[std::min(k0 + a, count - 1)];
        right[a] = in[std::min(i0 + a, count - 1)];
      }
      T dots[tile][tile];
      detail::dot_tile<T>(left, right, length, dots);
      for (index_t a = 0; a < tile; ++a) {
        T* target = gram.at(k0 + a, i0);
        for (index_t b = 0; b < tile; ++b) target[b] = k0 + a < count && i0 + b < count ? dots[a][b] * scale : T(0);
      }
    }
  }
}

}  // namespace subspan
