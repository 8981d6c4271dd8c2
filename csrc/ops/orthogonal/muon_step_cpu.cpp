#include "core/dispatch.h"
#include "ops/orthogonal/muon_step.h"
#include "ops/orthogonal/newton_schulz_item.h"

namespace subspan {
namespace {

// One matrix of an array.
struct MuonItem {
  const MuonArrays* arrays;
  index_t offset, rows, columns;  // offset in entries

  SchulzItem iteration(void* update) const { return {update, update, arrays->W.dtype, rows, columns, columns, 1}; }
  double flops(double steps) const { return iteration(nullptr).flops(steps); }
};

// Whole vectors of `entries` that are a member's own: body(i, count) for `count` entries from i.
template <class T, class Body>
[[gnu::always_inline]] inline void own_vectors(index_t entries, Team team, Body&& body) {
  const index_t part = round_up((entries + team.size() - 1) / team.size(), kLanes<T>);
  const index_t end = std::min(entries, (team.rank() + 1) * part);
  index_t i = team.rank() * part;
  for (; i + kLanes<T> <= end; i += kLanes<T>) body(i, index_t(kLanes<T>));
  if (i < end) body(i, end - i);
}

template <class T>
[[gnu::always_inline]] inline Vec<T> load_entries(const T* from, index_t count) {
  return count == kLanes<T> ? load(from) : load_partial(from, count);
}

// B <- B + rest (G - B) and U, the update.
template <class T, bool Nesterov>
void average(const T* G, T* B, T* U, index_t entries, T momentum, T rest, Team team) {
  own_vectors<T>(entries, team, [&](index_t i, index_t count) {
    const Vec<T> gradient = load_entries(G + i, count), before = load_entries(B + i, count);
    const Vec<T> buffer = before + rest * (gradient - before);
    store_entries(B + i, buffer, count);
    store_entries<T>(U + i, Nesterov ? gradient + momentum * (buffer - gradient) : buffer, count);
  });
}

template <class T>
void run_item(const MuonItem& item, const std::vector<OddPolynomial>& polynomials, double least_norm, int threads) {
  const MuonArrays& arrays = *item.arrays;
  T* W = arrays.W.ptr<T>() + item.offset;
  T* B = arrays.B.ptr<T>() + item.offset;
  const T* G = arrays.G.ptr<T>() + item.offset;
  const index_t entries = item.rows * item.columns;
  Workspace workspace;
  T* U = workspace.take<T>(entries);
  const SchulzIteration<T> iteration(item.iteration(U), least_norm, threads, workspace);
  const T rest = static_cast<T>(1 - arrays.momentum), momentum = static_cast<T>(arrays.momentum);
  const T rate = static_cast<T>(arrays.rate), kept = static_cast<T>(arrays.kept);
  parallel_team(threads, [&](Team team) {
    if (arrays.nesterov) {
      average<T, true>(G, B, U, entries, momentum, rest, team);
    } else {
      average<T, false>(G, B, U, entries, momentum, rest, team);
    }
    team.barrier();
    iteration.run(polynomials, team);
    team.barrier();
    own_vectors<T>(entries, team, [&](index_t i, index_t count) {
      store_entries<T>(W + i, kept * load_entries(W + i, count) - rate * load_entries(U + i, count), count);
    });
  });
}

}  // namespace

void muon_step_cpu(const std::vector<MuonArrays>& arrays, const std::vector<OddPolynomial>& polynomials,
                   double least_norm, int threads) {
  std::vector<MuonItem> items;
  for (const MuonArrays& one : arrays) {
    const index_t rows = one.W.size(-2), columns = one.W.size(-1);
    if (rows == 0 || columns == 0) continue;
    for (index_t item = 0; item < batch_count(one.W, 2); ++item) {
      items.push_back({&one, item * rows * columns, rows, columns});
    }
  }
  deal_matrices(items, static_cast<double>(polynomials.size()), threads, [&](const MuonItem& item, int useful) {
    dispatch_float(item.arrays->W.dtype, "muon_step",
                   [&](auto tag) { run_item<typename decltype(tag)::type>(item, polynomials, least_norm, useful); });
  });
}

}  // namespace subspan
