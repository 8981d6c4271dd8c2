// What the Cayley transform and its gradient share: what they are given, and how items are dealt to lanes and threads.
#pragma once
#include "core/batch.h"
#include "core/pack.h"
#include "core/parallel.h"
#include "core/small_matrix/gauss_jordan.h"
#include "core/small_matrix/interleave.h"

namespace subspan {

// What A is: K is its skew part; K lies below its diagonal, and nothing else counts; K / 2 above the diagonal, packed.
enum class SkewStorage { kSquare, kTriangle, kPacked };

inline index_t packed_count(index_t size) { return size * (size - 1) / 2; }
inline index_t packed_row(index_t size, index_t row) { return row * (2 * size - row - 1) / 2; }

// The square of kLanes x kLanes entries at (i, j); what lies beyond the last row is zero.
template <class T>
[[gnu::always_inline]] inline void load_square(const PaddedSquare<T>& m, index_t i, index_t j,
                                               Vec<T> (&to)[kLanes<T>]) {
#pragma GCC unroll 16
  for (index_t r = 0; r < kLanes<T>; ++r) to[r] = i + r < m.size ? load(m.row(i + r) + j) : Vec<T>{};
}
template <class T>
[[gnu::always_inline]] inline void store_square(const PaddedSquare<T>& m, index_t i, index_t j,
                                                const Vec<T> (&from)[kLanes<T>]) {
#pragma GCC unroll 16
  for (index_t r = 0; r < kLanes<T>; ++r) {
    if (i + r < m.size) store(m.row(i + r) + j, from[r]);
  }
}

// An array as a padded square, its rows dealt to the team. One of columns is transposed in squares.
template <class T>
void copy_matrix(const TensorView& from, index_t item, const PaddedSquare<T>& to, Team team) {
  constexpr index_t lanes = kLanes<T>;
  const index_t size = to.size, row_step = from.step(-2), column_step = from.step(-1);
  const void* data = batch_item(from, 2, item);
  if (row_step != 1 || column_step == 1 || from.dtype != (sizeof(T) == 4 ? DType::f32 : DType::f64)) {
    const Rows<T> rows(data, from.dtype, row_step, column_step);
    own_rows(size, team, [&](index_t i) {
      const T* in = rows.read(i, 0, size, to.row(i));
      if (in != to.row(i)) std::copy_n(in, size, to.row(i));
    });
    return;
  }
  for (index_t i = team.rank() * lanes; i < size; i += team.size() * lanes) {
    const index_t count = std::min(lanes, size - i);
    for (index_t j = 0; j < size; j += lanes) {
      Vec<T> square[lanes];
      for (index_t c = 0; c < lanes; ++c) {
        const T* column = static_cast<const T*>(data) + (j + c) * column_step + i;
        square[c] = j + c >= size ? Vec<T>{} : count == lanes ? load(column) : load_partial(column, count);
      }
      transpose_square<T>(square);
      store_square(to, i, j, square);
    }
  }
}

// A team waits at three barriers for every block of pivots: what one matrix must cost for that, in the unit of
// useful_threads.
constexpr double kSharedBetween = 64;

// interleaved(group) or padded(item, threads) for all items: matrices lie side by side in SIMD lanes up to the size
// `most`, provided there are enough to fill them.
template <class T, class Interleaved, class Padded>
void each_item(index_t size, index_t most, index_t items, double flops, int threads, Interleaved&& interleaved,
               Padded&& padded) {
  const int useful = useful_threads(flops * static_cast<double>(items), threads);
  if (size <= kTinyPivots || (size <= most && 4 * items >= kLanes<T>)) {
    parallel_for(lane_groups<T>(items), useful, interleaved);
  } else if (items >= threads) {
    parallel_for(items, useful, [&](index_t item) { padded(item, 1); });
  } else {
    for (index_t item = 0; item < items; ++item) padded(item, useful_threads(flops / kSharedBetween, threads));
  }
}

}  // namespace subspan
