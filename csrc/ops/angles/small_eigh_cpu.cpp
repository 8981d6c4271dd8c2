#include <numeric>

#include "core/parallel.h"
#include "core/small_matrix/interleave.h"
#include "core/small_matrix/jacobi.h"
#include "core/small_matrix/tridiagonal.h"
#include "ops/angles/small_eigh.h"

namespace subspan {
namespace {

// Values alone of smaller matrices are found faster by Jacobi's method, in both types and at all levels: of two rows in
// 2.6 ns against 7 in float32 with AVX-512, of three in 22 against 13.
constexpr index_t kFewest = 3;

template <class T>
struct Call {
  const TensorView& A;
  T* values;
  T* vectors;
  std::int32_t* info;
  index_t items;
};

template <class T>
void decompose(const Call<T>& call, index_t index) {
  const LaneGroup<T> group(index, call.items);
  const index_t size = call.A.size(-1);
  Workspace workspace;
  Vec<T>* a = workspace.take<Vec<T>>(size * size);
  Vec<T>* vectors = call.vectors ? workspace.take<Vec<T>>(size * size) : nullptr;
  Vec<T>* values = workspace.take<Vec<T>>(size);
  index_t* order = workspace.take<index_t>(size);
  interleave<T>(call.A, group, a, size, 1);
  for (index_t r = 0; r < size; ++r) {
    for (index_t c = r + 1; c < size; ++c) a[r * size + c] = a[c * size + r];
  }
  const Vec<T> power = scale_to_one<T>(a, size * size);
  const Mask<T> unsettled = eigh_interleaved<Precision::kNormwise, T>(a, size, vectors, values);
  Vec<T> poison{};
  for (index_t c = 0; c < size; ++c) poison += values[c] * 0;
  for (index_t lane = 0; lane < group.present; ++lane) {
    const index_t item = group.first + lane;
    std::iota(order, order + size, index_t(0));
    std::stable_sort(order, order + size, [&](index_t i, index_t j) { return values[i][lane] < values[j][lane]; });
    for (index_t c = 0; c < size; ++c) {
      call.values[item * size + c] = values[order[c]][lane] * power[lane] + poison[lane];
      for (index_t i = 0; vectors && i < size; ++i)
        call.vectors[(item * size + i) * size + c] = vectors[order[c] * size + i][lane] + poison[lane];
    }
    if (call.info) call.info[item] = unsettled[lane] != 0;
  }
}

// Values alone, of kGroups lane groups together.
template <class T>
void values_alone(const Call<T>& call, index_t block) {
  using qd::kGroups;
  const index_t size = call.A.size(-1), entries = size * size;
  const index_t first = block * kGroups, groups = std::min<index_t>(kGroups, lane_groups<T>(call.items) - first);
  const index_t together = bidiagonal::groups_together<T>(entries / 2, kGroups);
  Workspace workspace;
  Vec<T>* a = workspace.take<Vec<T>>(entries * together);
  Vec<T>* values = workspace.take<Vec<T>>((size + 1) * kGroups);
  Vec<T>* ordered = workspace.take<Vec<T>>(size);
  const qd::Entries<T> factors = qd::Entries<T>::take(size, workspace);
  Vec<T> power[kGroups], bound[kGroups];
  Mask<T> unsettled[kGroups];
  for (index_t g = 0; g < groups; g += together) {
    const index_t count = std::min(together, groups - g);
    for (index_t i = 0; i < count; ++i) {
      Vec<T>* lower = a + i * entries;
      interleave<T>(call.A, LaneGroup<T>(first + g + i, call.items), lower, 1, size);
      for (index_t c = 1; c < size; ++c) {
        for (index_t r = 0; r < c; ++r) lower[c * size + r] = Vec<T>{};
      }
      power[g + i] = scale_to_one<T>(lower, entries);
    }
    tridiagonalize_interleaved<T>(a, size, count, factors.q + g, factors.e + g, kGroups);
    for (index_t i = g; i < g + count; ++i)
      bound[i] = factor_tridiagonal<T>(factors.q + i, factors.e + i, size, kGroups);
  }
  for (index_t g = groups; g < kGroups; ++g) factors.leave_out(g, size);
  qd_interleaved<Judged::kPlain, T>(factors, size, values, unsettled);
  for (index_t g = 0; g < groups; ++g) {
    const LaneGroup<T> group(first + g, call.items);
    for (index_t i = 0; i < size; ++i) ordered[i] = (values[(size - 1 - i) * kGroups + g] + bound[g]) * power[g];
    deinterleave<T>(ordered, 0, 1, group, 1, size, call.values);
    for (index_t lane = 0; call.info && lane < group.present; ++lane)
      call.info[group.first + lane] = unsettled[g][lane] != 0;
  }
}

}  // namespace

void small_eigh_cpu(const TensorView& A, const TensorView& values, const TensorView* vectors, const TensorView* info,
                    int threads) {
  dispatch_float(compute_dtype(A.dtype), "small_eigh", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Call<T> call{A, values.ptr<T>(), vectors ? vectors->ptr<T>() : nullptr,
                       info ? info->ptr<std::int32_t>() : nullptr, batch_count(A, 2)};
    const double size = static_cast<double>(A.size(-1));
    const double items = static_cast<double>(call.items);
    if (call.vectors || call.A.size(-1) < kFewest) {
      const double flops = 60 * size * (size * size + 10) * items;
      parallel_for(lane_groups<T>(call.items), useful_threads(flops, threads),
                   [&](index_t group) { decompose(call, group); });
    } else {
      const double flops = size * (4 * size * size / 3 + 60 * size + 100) * items;
      const index_t blocks = (lane_groups<T>(call.items) + qd::kGroups - 1) / qd::kGroups;
      parallel_for(blocks, useful_threads(flops, threads), [&](index_t block) { values_alone(call, block); });
    }
  });
}

}  // namespace subspan
