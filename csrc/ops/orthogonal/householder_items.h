// What the passes over products of reflectors share: how items and threads are matched, and the members' memory.
#pragma once
#include <optional>
#include <vector>

#include "ops/orthogonal/reflectors.h"

namespace subspan {

// run(item, team size) for every item: one thread for each where there are enough of them, else teams.
template <class Run>
void each_item(index_t items, double flops, int threads, Run&& run) {
  if (items >= threads) {
    const int used = useful_threads(static_cast<double>(items) * flops, threads);
    parallel_for(items, used, [&](index_t item) { run(item, 1); });
  } else {
    for (index_t item = 0; item < items; ++item) run(item, useful_threads(flops / 4, threads));
  }
}

// As wide as a panel, or narrower where that gives the members more equal shares. No column's result depends on it.
template <class T>
index_t strip_width(index_t columns, int threads) {
  constexpr index_t unit = std::max<index_t>(kLanes<T>, kTileRows);
  const auto longest = [&](index_t width) {
    const index_t strips = (columns + width - 1) / width;
    return (strips + threads - 1) / threads * width;
  };
  index_t best = panel_width<T>(columns);
  for (index_t width = best - unit; threads > 1 && width > 0; width -= unit) {
    if (longest(width) < longest(best)) best = width;
  }
  return best;
}

template <class T>
std::vector<Strip<T>> make_strips(const Reflectors<T>& reflectors, index_t columns, int threads, Workspace& workspace) {
  std::vector<Strip<T>> strips;
  for (int i = 0; i < threads; ++i) strips.emplace_back(reflectors, strip_width<T>(columns, threads), workspace);
  return strips;
}

// Whether V and the columns that it is applied to, which are the identity's, are both narrow: then all is done by
// columns, from V where it lies. What decides is the shape alone, so that no layout changes a bit.
template <class T>
bool by_columns(const HouseholderArrays& in, const Reflectors<T>& reflectors) {
  return reflectors.narrow() && !in.X && in.columns <= kNarrow<T> && !reflectors.lapack();
}

inline Rows<double> tau_of(const TensorView& tau, index_t item) {
  return Rows<double>(batch_item(tau, 1, item), tau.dtype, 0, tau.step(-1));
}

}  // namespace subspan
