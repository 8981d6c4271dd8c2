// Candidates by the terms that cost little, then their scores in full.
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "ops/search/best_of_queries.h"

namespace subspan {
namespace {

// The place of a document's value in a list, or -1.
index_t place_of(const PostingList& list, index_t documents, index_t document) {
  if (list.bitmap) {
    const index_t word = document / 64;
    std::uint64_t bits;
    std::memcpy(&bits, list.ids + 4 * word, sizeof bits);
    const std::uint64_t bit = std::uint64_t{1} << (document % 64);
    if ((bits & bit) == 0) return -1;
    return list.ids[4 * bitmap_words(documents) + word] + __builtin_popcountll(bits & (bit - 1));
  }
  const std::uint16_t* end = list.ids + list.count;
  const std::uint16_t* found = std::lower_bound(list.ids, end, document);
  return found != end && *found == document ? found - list.ids : -1;
}

// The sum that the exhaustive search makes: the same steps in the same order.
float full_score(const IndexContent& index, const QueryTerm* term, const QueryTerm* end, index_t document) {
  const Window& window = index.windows[static_cast<std::size_t>(document / index.settings.window)];
  const WindowView& view = window.view;
  const index_t columns = index.settings.columns, local = document - window.first;
  const bool negative = view.has_negative_lists(columns);
  float score = 0;
  const auto add = [&](index_t key, float weight) {
    const PostingList list = view.find(key);
    const index_t place = list.count != 0 ? place_of(list, view.documents(), local) : -1;
    if (place >= 0) score += weight * stored_value(view.type(), list.values, static_cast<std::size_t>(place));
  };
  for (; term != end; ++term) {
    add(term->column, term->weight);
    if (negative) add(key_of(term->column, columns, true), -term->weight);
  }
  return view.type() == ValueType::u8 ? score * view.scales()[local] : score;
}

}  // namespace

SearchCost search_approximate(const IndexContent& index, const SparseRowsView& rows, const Approximation& measure,
                              const SearchOutput& out, int threads) {
  const Queries queries(index, rows);
  // Where looking the candidates up costs as much as adding up all postings, the result may as well be exact.
  const index_t candidates = std::min(index.documents, out.k * measure.candidates);
  constexpr std::uint64_t lookup_cost = 100;  // in postings
  const std::uint64_t lookups = lookup_cost * static_cast<std::uint64_t>(candidates * queries.term_count());
  const Queries kept = queries.without_costly_terms(index, measure.omitted);
  if (kept.predicted() + lookups >= queries.predicted()) return search_exact(index, rows, out, threads);

  for (index_t query = 0; query < queries.count(); ++query) out.error_bound[query] = queries.error_bound(query);
  BestOfQueries found;
  SearchCost cost = found.collect(index, kept, candidates, threads);
  cost.predicted = queries.predicted();
  parallel_for(queries.count(), threads, [&](index_t query) {
    std::vector<std::uint64_t> ranks(static_cast<std::size_t>(BestDocuments::room(out.k)));
    BestDocuments best(ranks.data(), out.k);
    found.of(query).for_each_best([&](float partial, index_t document) {
      if (best.full() && partial + kept.omitted(query) < best.least()) return false;  // nor do those after it
      best.offer_any(full_score(index, queries.begin(query), queries.end(query), document), document);
      return true;
    });
    best.write_sorted(out.scores + query * out.k, out.ids + query * out.k);
  });
  return cost;
}

}  // namespace subspan
