#include "core/dispatch.h"
#include "ops/coding_rate/sinkhorn.h"
#include "ops/coding_rate/sinkhorn_scaling.h"

namespace subspan {
namespace {

// The last half-step, which writes the rows.
template <class T>
void write_rows(const SinkhornScaling<T>& scaling, T* P, Team team) {
  const index_t columns = scaling.columns;
  T* e = scaling.scratch(team, 0);
  scaling.for_each_block(team, [&](index_t first, index_t end, T*) {
    bool invalid = false;
    for (index_t row = first; row < end; ++row) {
      const T sum = scaling.exponentials(row, scaling.g(scaling.column_steps), e, nullptr, team);
      invalid |= !(sum >= 1);
      const T over = 1 / sum;
      T* out = P + row * columns;
      index_t j = 0;
      for (; j + kLanes<T> <= columns; j += kLanes<T>) store(out + j, load(e + j) * over);
      for (; j < columns; ++j) out[j] = e[j] * over;
    }
    scaling.invalid[scaling.block_of(first)] = invalid;
  });
  team.barrier();
  // One row without a result takes the item with it.
  if (!any_of(scaling.invalid, scaling.blocks())) return;
  scaling.for_each_block(
      team, [&](index_t first, index_t end, T*) { std::fill(P + first * columns, P + end * columns, T(NAN)); });
}

}  // namespace

void sinkhorn_cpu(const TensorView& scores, const TensorView& P, double temperature, index_t iterations, int threads) {
  const index_t elements = scores.size(-1) * scores.size(-2);
  if (scores.numel() == 0) return;
  dispatch_float(P.dtype, "sinkhorn", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const double passes = static_cast<double>((iterations + 1) / 2);
    for_each_scaling<T>(scores, temperature, iterations, false, passes, threads,
                        [&](const SinkhornScaling<T>& scaling, index_t item, Team team) {
                          scaling.solve(team);
                          write_rows(scaling, P.ptr<T>() + item * elements, team);
                        });
  });
}

}  // namespace subspan
