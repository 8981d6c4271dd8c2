#include <numeric>

#include "core/dispatch.h"
#include "ops/orthogonal/newton_schulz_item.h"

namespace subspan {
namespace {

void run_item(const SchulzItem& item, const std::vector<OddPolynomial>& polynomials, double least_norm, int threads) {
  dispatch_float(compute_dtype(item.dtype), "newton_schulz", [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace workspace;
    const SchulzIteration<T> iteration(item, least_norm, threads, workspace);
    parallel_team(threads, [&](Team team) { iteration.run(polynomials, team); });
  });
}

// All matrices of all arrays, the most work first.
std::vector<SchulzItem> items_of(const std::vector<TensorView>& G, const std::vector<TensorView>& results) {
  std::vector<SchulzItem> items;
  for (std::size_t i = 0; i < G.size(); ++i) {
    const TensorView& from = G[i];
    const index_t rows = from.size(-2), columns = from.size(-1);
    if (rows == 0 || columns == 0) continue;
    char* result = static_cast<char*>(results[i].data);
    const index_t bytes = rows * columns * element_size(results[i].dtype);
    for (index_t item = 0; item < batch_count(from, 2); ++item) {
      items.push_back(
          {batch_item(from, 2, item), result + item * bytes, from.dtype, rows, columns, from.step(-2), from.step(-1)});
    }
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const SchulzItem& a, const SchulzItem& b) { return a.flops(5) > b.flops(5); });
  return items;
}

}  // namespace

// A matrix that is a large part of what is left is worked on by all threads, the rest one matrix to a thread.
void newton_schulz_cpu(const std::vector<TensorView>& G, const std::vector<TensorView>& results,
                       const std::vector<OddPolynomial>& polynomials, double least_norm, int threads) {
  const std::vector<SchulzItem> items = items_of(G, results);
  const double steps = static_cast<double>(polynomials.size());
  double left = 0;
  for (const SchulzItem& item : items) left += item.flops(steps);
  std::size_t shared = 0;
  for (; shared < items.size(); ++shared) {
    const double flops = items[shared].flops(steps);
    if (flops * 4 * threads < left) break;
    run_item(items[shared], polynomials, least_norm, useful_threads(flops / 4, threads));
    left -= flops;
  }
  parallel_for(
      static_cast<index_t>(items.size() - shared), useful_threads(left, threads),
      [&](index_t i) { run_item(items[shared + static_cast<std::size_t>(i)], polynomials, least_norm, 1); }, 1);
}

}  // namespace subspan
