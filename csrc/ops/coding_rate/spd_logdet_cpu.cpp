#include "core/pack.h"
#include "core/small_matrix/interleave.h"
#include "core/small_matrix/inverse.h"
#include "ops/coding_rate/spd_logdet.h"

namespace subspan {
namespace {

// Up to this size matrices are factored side by side in SIMD lanes, provided there are enough to fill them: measured on
// AVX-512, four 32 x 32 matrices in sixteen lanes already beat the blocked form.
constexpr index_t kInterleavedSize = 32;
constexpr index_t kInterleavedItems = 4;

template <class T>
struct Call {
  const TensorView& A;
  T* logdet;
  T* inverse;
  std::int32_t* info;
  index_t size;
  index_t items;

  Rows<T> rows(index_t item) const { return {batch_item(A, 2, item), A.dtype, A.step(-2), A.step(-1)}; }
  T* inverse_of(index_t item) const { return inverse + item * size * size; }
};

template <Pivot kind, class T>
void blocked(const Call<T>& call, index_t item, int threads) {
  Workspace workspace;
  const index_t size = call.size;
  const Factor<T> factor = Factor<T>::take(size, workspace);
  const Panels<T>& lower = factor.lower;
  const Rows<T> rows = call.rows(item);
  const Panels<T> work{call.inverse ? workspace.take<T>(panel_elements<T>(lower.depth, size)) : nullptr, lower.depth,
                       lower.width};
  PivotLog<double, double, kind> log;
  parallel_team(threads, [&](Team team) {
    for (index_t p = team.rank(); p * lower.width < size; p += team.size()) {
      const index_t first = p * lower.width;
      const Panels<T> panel{lower.panel(p), lower.depth, lower.width};
      const index_t count = std::min(lower.width, size - first);
      pack_rows(rows, first, count, 0, first + count, panel);
    }
    team.barrier();
    PivotLog<double, double, kind> private_log;
    cholesky(factor, private_log, team);
    if (team.rank() == 0) log = private_log;
    if (!call.inverse) return;
    inverse(factor, work, lower, team);
    T* out = call.inverse_of(item);
    for (index_t i = team.rank(); i < size; i += team.size()) {
      for (index_t j = 0; j < size; ++j) out[i * size + j] = *lower.at(i, j);
    }
  });
  call.logdet[item] = static_cast<T>(log.log());
  if (call.info) call.info[item] = static_cast<std::int32_t>(log.info());
}

// Matrices first ... first + kLanes - 1, one per lane; lanes beyond the last item repeat it and are not stored.
template <Pivot kind, class T>
void interleaved(const Call<T>& call, index_t group) {
  constexpr index_t lanes = kLanes<T>;
  const index_t size = call.size, first = group * lanes;
  const index_t present = std::min(lanes, call.items - first);
  Workspace workspace;
  Vec<T>* a = workspace.take<Vec<T>>(size * size + lanes);
  Vec<T>* reciprocals = workspace.take<Vec<T>>(size);
  T scratch[lanes][kInterleavedSize + lanes] = {};
  const void* matrices[lanes];
  for (index_t lane = 0; lane < lanes; ++lane)
    matrices[lane] = batch_item(call.A, 2, first + std::min(lane, present - 1));
  const bool readable = call.rows(first).in_place();
  for (index_t i = 0; i < size; ++i) {
    // Whole vectors are loaded: read in place where they end within the row, else through scratch.
    const bool in_place = readable && round_up(i + 1, lanes) <= size;
    const T* in[lanes];
    for (index_t lane = 0; lane < lanes; ++lane) {
      if (in_place) {
        in[lane] = static_cast<const T*>(matrices[lane]) + i * call.A.step(-2);
        continue;
      }
      const Rows<T> rows(matrices[lane], call.A.dtype, call.A.step(-2), call.A.step(-1));
      const T* row = rows.read(i, 0, i + 1, scratch[lane]);
      for (index_t k = 0; row != scratch[lane] && k <= i; ++k) scratch[lane][k] = row[k];
      in[lane] = scratch[lane];
    }
    for (index_t k = 0; k <= i; k += lanes) {
      Vec<T> square[lanes];
#pragma GCC unroll 16
      for (index_t lane = 0; lane < lanes; ++lane) square[lane] = load(in[lane] + k);
      transpose_square<T>(square);
      // Beyond the diagonal nothing is read, and what is beyond the row is overwritten by the next one.
#pragma GCC unroll 16
      for (index_t c = 0; c < lanes; ++c) a[i * size + k + c] = square[c];
    }
  }
  PivotLog<T, Vec<T>, kind> log;
  cholesky_interleaved(a, reciprocals, size, log);
  const auto log_det = log.log();
  const auto info = log.info();
  for (index_t lane = 0; lane < present; ++lane) {
    call.logdet[first + lane] = log_det[lane];
    if (call.info) call.info[first + lane] = static_cast<std::int32_t>(info[lane]);
  }
  if (!call.inverse) return;
  inverse_interleaved<T>(a, reciprocals, size);
  deinterleave<T>(a, size, 1, LaneGroup<T>(group, call.items), size, size, call.inverse_of(0));
}

template <Pivot kind, class T>
void run(const Call<T>& call, int threads) {
  const double size = static_cast<double>(call.size);
  const double flops = size * size * size * (call.inverse ? 1.0 : 1.0 / 3);
  const int useful = useful_threads(flops * static_cast<double>(call.items), threads);
  if (call.size <= kInterleavedSize && call.items >= kInterleavedItems) {
    parallel_for((call.items + kLanes<T> - 1) / kLanes<T>, useful,
                 [&](index_t group) { interleaved<kind>(call, group); });
  } else if (call.items >= threads) {
    parallel_for(call.items, useful, [&](index_t item) { blocked<kind>(call, item, 1); });
  } else {
    for (index_t item = 0; item < call.items; ++item) blocked<kind>(call, item, useful_threads(flops / 4, threads));
  }
}

}  // namespace

void spd_logdet_cpu(const TensorView& A, const TensorView& logdet, const TensorView* inverse, const TensorView* info,
                    bool implicit_identity, int threads) {
  dispatch_float(compute_dtype(A.dtype), "spd_logdet", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Call<T> call{
        A,          logdet.ptr<T>(),  inverse ? inverse->ptr<T>() : nullptr, info ? info->ptr<std::int32_t>() : nullptr,
        A.size(-1), batch_count(A, 2)};
    implicit_identity ? run<Pivot::kIdentity>(call, threads) : run<Pivot::kPlain>(call, threads);
  });
}

}  // namespace subspan
