// What the Cayley transform and its gradient share: what they are given, and how items are dealt to lanes and threads.
#pragma once
#include "core/batch.h"
#include "core/parallel.h"
#include "core/small_matrix/interleave.h"

namespace subspan {

// What A is: K is its skew part; K lies below its diagonal, and nothing else counts; K / 2 above the diagonal, packed.
enum class SkewStorage { kSquare, kTriangle, kPacked };

inline index_t packed_count(index_t size) { return size * (size - 1) / 2; }
inline index_t packed_row(index_t size, index_t row) { return row * (2 * size - row - 1) / 2; }

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
