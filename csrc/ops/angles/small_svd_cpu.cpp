#include "core/parallel.h"
#include "core/small_matrix/bidiagonal.h"
#include "core/small_matrix/complete_basis.h"
#include "core/small_matrix/interleave.h"
#include "core/small_matrix/jacobi.h"
#include "core/small_matrix/quotient_difference.h"
#include "ops/angles/small_svd.h"

namespace subspan {
namespace {

// Values alone of fewer columns are found as fast or faster by Jacobi's method, in both types and at all levels: of two
// in 5.9 ns against 8.2 in float32 with AVX-512, of three in 25 against 15.6.
constexpr index_t kFewest = 3;
// Squares this small beside the largest are zeros in which the transforms have left a trace.
template <class T>
constexpr T kNone = sizeof(T) == 4 ? T(1e-18) : T(1e-88);

template <class T>
struct Call {
  const TensorView& M;
  T* values;
  T* left;
  T* right;
  std::int32_t* info;
  index_t items;

  index_t rows() const { return M.size(-2); }
  index_t columns() const { return M.size(-1); }
  index_t rank() const { return std::min(rows(), columns()); }
  bool wide() const { return rows() <= columns(); }
};

// The method orthogonalises columns. Of a wide matrix it takes the transpose, M^T = V diag(values) U^T.
template <class T>
void decompose(const Call<T>& call, index_t index) {
  const LaneGroup<T> group(index, call.items);
  const index_t rank = call.rank(), length = std::max(call.rows(), call.columns());
  Workspace workspace;
  Vec<T>* x = workspace.take<Vec<T>>(rank * length);
  Vec<T>* rotations = call.left ? workspace.take<Vec<T>>(rank * rank) : nullptr;
  Vec<T>* values = workspace.take<Vec<T>>(rank);
  interleave<T>(call.M, group, x, call.wide() ? length : 1, call.wide() ? 1 : length);
  const Vec<T> power = scale_to_one<T>(x, rank * length);
  const Mask<T> unsettled = svd_interleaved<T>(x, length, rank, rotations, values);
  Vec<T> poison{};
  for (index_t c = 0; c < rank; ++c) poison += values[c] * 0;
  index_t solid[kLanes<T>];  // columns that are longer than rounding errors of the others, by lane
  for (index_t lane = 0; lane < kLanes<T>; ++lane) {
    index_t c = 0;
    while (c < rank && !(values[c][lane] <= jacobi::kNegligible<T> * values[0][lane])) ++c;
    solid[lane] = c;
  }
  if (call.left) {
    for (index_t c = 0; c < rank; ++c) {
      const Vec<T> inverse = 1 / (values[c] > 0 ? values[c] : broadcast(T(1))) + poison;
      for (index_t i = 0; i < length; ++i) x[c * length + i] *= inverse;
      for (index_t i = 0; i < rank; ++i) rotations[c * rank + i] += poison;
    }
    T* bases = call.wide() ? call.right : call.left;
    const index_t step = call.wide() ? 1 : rank, next = call.wide() ? length : 1;
    if (call.wide()) {
      deinterleave<T>(rotations, 1, rank, group, rank, rank, call.left);
      deinterleave<T>(x, length, 1, group, rank, length, call.right);
    } else {
      deinterleave<T>(x, 1, length, group, length, rank, call.left);
      deinterleave<T>(rotations, rank, 1, group, rank, rank, call.right);
    }
    for (index_t lane = 0; lane < group.present; ++lane) {
      T* basis = bases + (group.first + lane) * rank * length;
      if (solid[lane] < rank) complete_basis(basis, step, next, length, solid[lane], rank);
    }
  }
  for (index_t c = 0; c < rank; ++c) values[c] = values[c] * power + poison;
  deinterleave<T>(values, 0, 1, group, 1, rank, call.values);
  for (index_t lane = 0; call.info && lane < group.present; ++lane)
    call.info[group.first + lane] = unsettled[lane] != 0;
}

// Values alone, of kGroups lane groups together. The reduction to bidiagonal form reads a wide matrix transposed.
template <class T>
void values_alone(const Call<T>& call, index_t block) {
  using qd::kGroups;
  const index_t rank = call.rank(), length = std::max(call.rows(), call.columns()), size = rank * length;
  const index_t first = block * kGroups, groups = std::min<index_t>(kGroups, lane_groups<T>(call.items) - first);
  const index_t together = bidiagonal::groups_together<T>(size, kGroups);
  Workspace workspace;
  Vec<T>* x = workspace.take<Vec<T>>(size * together);
  Vec<T>* values = workspace.take<Vec<T>>((rank + 1) * kGroups);
  Vec<T>* ordered = workspace.take<Vec<T>>(rank);
  const qd::Entries<T> entries = qd::Entries<T>::take(rank, workspace);
  Vec<T> power[kGroups];
  Mask<T> unsettled[kGroups];
  for (index_t g = 0; g < groups; g += together) {
    const index_t count = std::min(together, groups - g);
    for (index_t i = 0; i < count; ++i) {
      const LaneGroup<T> group(first + g + i, call.items);
      interleave<T>(call.M, group, x + i * size, call.wide() ? length : 1, call.wide() ? 1 : length);
      power[g + i] = scale_to_one<T>(x + i * size, size);
    }
    bidiagonalize_interleaved<T>(x, length, rank, count, entries.q + g, entries.e + g, kGroups);
  }
  for (index_t g = groups; g < kGroups; ++g) entries.leave_out(g, rank);
  qd_interleaved<Judged::kRoots, T>(entries, rank, values, unsettled);
  for (index_t g = 0; g < groups; ++g) {
    const LaneGroup<T> group(first + g, call.items);
    const Vec<T> least = values[g] * kNone<T>;
    for (index_t c = 0; c < rank; ++c) {
      const Vec<T> square = values[c * kGroups + g];
      ordered[c] = square_root(square < least ? Vec<T>{} : square) * power[g];
    }
    deinterleave<T>(ordered, 0, 1, group, 1, rank, call.values);
    for (index_t lane = 0; call.info && lane < group.present; ++lane)
      call.info[group.first + lane] = unsettled[g][lane] != 0;
  }
}

}  // namespace

void small_svd_cpu(const TensorView& M, const TensorView& values, const TensorView* left, const TensorView* right,
                   const TensorView* info, int threads) {
  dispatch_float(compute_dtype(M.dtype), "small_svd", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Call<T> call{M,
                       values.ptr<T>(),
                       left ? left->ptr<T>() : nullptr,
                       right ? right->ptr<T>() : nullptr,
                       info ? info->ptr<std::int32_t>() : nullptr,
                       batch_count(M, 2)};
    const double rank = static_cast<double>(call.rank()), length = static_cast<double>(M.size(-1) + M.size(-2));
    const double items = static_cast<double>(call.items);
    if (call.left || call.rank() < kFewest) {
      const double flops = 30 * rank * (rank * length + 10) * items;
      parallel_for(lane_groups<T>(call.items), useful_threads(flops, threads),
                   [&](index_t group) { decompose(call, group); });
    } else {
      const double flops = rank * (2 * rank * length + 60 * rank + 100) * items;
      const index_t blocks = (lane_groups<T>(call.items) + qd::kGroups - 1) / qd::kGroups;
      parallel_for(blocks, useful_threads(flops, threads), [&](index_t block) { values_alone(call, block); });
    }
  });
}

}  // namespace subspan
