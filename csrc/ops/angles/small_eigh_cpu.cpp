#include <numeric>

#include "core/parallel.h"
#include "core/small_matrix/interleave.h"
#include "core/small_matrix/jacobi.h"
#include "ops/angles/small_eigh.h"

namespace subspan {
namespace {

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

}  // namespace

void small_eigh_cpu(const TensorView& A, const TensorView& values, const TensorView* vectors, const TensorView* info,
                    int threads) {
  dispatch_float(compute_dtype(A.dtype), "small_eigh", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Call<T> call{A, values.ptr<T>(), vectors ? vectors->ptr<T>() : nullptr,
                       info ? info->ptr<std::int32_t>() : nullptr, batch_count(A, 2)};
    const double size = static_cast<double>(A.size(-1));
    const double flops = 60 * size * (size * size + 10) * static_cast<double>(call.items);
    parallel_for(lane_groups<T>(call.items), useful_threads(flops, threads),
                 [&](index_t group) { decompose(call, group); });
  });
}

}  // namespace subspan
