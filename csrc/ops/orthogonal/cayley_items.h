// What the Cayley transform and its gradient share: how matrices are given, and who computes which.
#pragma once
#include "core/dispatch.h"
#include "core/small_matrix/gauss_jordan.h"
#include "core/small_matrix/interleave.h"
#include "ops/orthogonal/cayley.h"

namespace subspan::cayley_items {

// What A is: K is its skew part; K lies below its diagonal, and nothing else counts; K / 2 above the diagonal, packed.
enum class Given { kSquare, kTriangle, kPacked };

inline index_t packed_count(index_t size) { return size * (size - 1) / 2; }
inline index_t packed_row(index_t size, index_t row) { return row * (2 * size - row - 1) / 2; }

// The largest matrices that lie side by side in SIMD lanes. Measured on AVX-512: lanes share the latency of the pivots,
// while plain products are better where vectors lie along rows.
inline constexpr index_t kInterleavedInverse = 64, kInterleavedProducts = 16;
// A team waits at three barriers for every block of pivots: what one matrix must cost for that, in the unit of
// useful_threads.
inline constexpr double kSharedBetween = 64;

// Pairs (i, j), j < i, in square blocks, whose transposes stay in the cache; the blocks of some rows belong to each
// member of a team.
template <class Body>
void each_pair(index_t size, Team team, Body&& body) {
  constexpr index_t block = 16;
  for (index_t top = team.rank() * block; top < size; top += team.size() * block) {
    for (index_t left = 0; left <= top; left += block) {
      for (index_t i = top; i < std::min(top + block, size); ++i) {
        for (index_t j = left; j < std::min(left + block, i); ++j) body(i, j);
      }
    }
  }
}

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

}  // namespace subspan::cayley_items
