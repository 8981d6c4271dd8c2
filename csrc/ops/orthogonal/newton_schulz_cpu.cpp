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

// All matrices of all arrays.
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
  return items;
}

}  // namespace

void newton_schulz_cpu(const std::vector<TensorView>& G, const std::vector<TensorView>& results,
                       const std::vector<OddPolynomial>& polynomials, double least_norm, int threads) {
  std::vector<SchulzItem> items = items_of(G, results);
  deal_matrices(items, static_cast<double>(polynomials.size()), threads,
                [&](const SchulzItem& item, int useful) { run_item(item, polynomials, least_norm, useful); });
}

}  // namespace subspan
