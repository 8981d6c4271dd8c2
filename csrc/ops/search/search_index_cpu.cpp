// The exhaustive search: every posting of every term of a query is multiplied and added, in windows whose scores stay
// in the first-level cache. For a batch of queries a window's lists serve all of them before the next window's are
// read.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/search/accumulate.h"
#include "ops/search/best_of_queries.h"
#include "ops/search/search_index.h"

namespace subspan {
namespace {

constexpr index_t kMostQueriesPerBlock = 256;
constexpr double kFlopsPerPosting = 15;  // of the scale of kFlopsPerThread: the time that a posting takes

// How a search is divided: queries into blocks, windows into parts, every part of every block a piece of work with hits
// of its own, the best of which are the best. Large blocks come first, since a window's lists are fetched once for each
// block, then parts of many windows, since a part begins without a threshold.
struct Division {
  index_t block, blocks, parts;

  Division(index_t queries, index_t windows, index_t threads) {
    const index_t wanted = threads == 1 ? 1 : 4 * threads;
    const auto quotient = [](index_t a, index_t b) { return (a + b - 1) / b; };
    const index_t long_parts = std::clamp<index_t>(windows / 8, 1, wanted);
    block = std::clamp<index_t>(quotient(queries * long_parts, wanted), 1, kMostQueriesPerBlock);
    blocks = quotient(queries, block);
    parts = std::min(windows, quotient(wanted, blocks));
  }
};

// A list that a query will add.
struct Addition {
  PostingList list;
  float weight;
};

// The lists of a query in a window, in the order of its terms, on their way to the cache; returns how many.
index_t find_lists(const WindowView& window, const QueryTerm* term, const QueryTerm* end, index_t columns,
                   Addition* found) {
  const Addition* const start = found;
  const bool negative = window.has_negative_lists(columns);
  const auto take = [&](index_t key, float weight) {
    const PostingList list = window.find(key);
    if (list.count == 0) return;
    // The processor fetches on by itself once a list is read in order for a while.
    for (std::uint32_t line = 0; line < std::min(list.count / 32 + 1, 4u); ++line)
      __builtin_prefetch(list.ids + 32 * line);
    for (std::uint32_t line = 0; line < std::min(list.count / 16 + 1, 8u); ++line)
      __builtin_prefetch(list.values + 64 * line);
    *found++ = {list, weight};
  };
  for (; term != end; ++term) {
    take(term->column, term->weight);
    if (negative) take(key_of(term->column, columns, true), -term->weight);
  }
  return found - start;
}

template <ValueType type>
void score_window(const WindowView& window, const Addition* list, index_t count, float* scores) {
  for (; count > 0; --count, ++list) accumulate<type>(list->list, window.documents(), list->weight, scores);
  if constexpr (type == ValueType::u8) {
    for (index_t i = 0; i < window.documents(); ++i) scores[i] *= window.scales()[i];
  }
}

void score_window(const WindowView& window, const Addition* list, index_t count, float* scores) {
  switch (window.type()) {
    case ValueType::f32: return score_window<ValueType::f32>(window, list, count, scores);
    case ValueType::f16: return score_window<ValueType::f16>(window, list, count, scores);
    default: return score_window<ValueType::u8>(window, list, count, scores);
  }
}

// Queries begin ... end - 1 in the given windows; what is found for query i goes to `best[i - begin]`. While one query
// is added up, the lists of the next are fetched.
SearchCost search_block(const IndexContent& index, const Queries& queries, index_t begin, index_t end,
                        std::size_t first_window, std::size_t end_window, BestDocuments* best) {
  SearchCost cost;
  Workspace workspace;
  const index_t room = index.settings.window;
  float* scores = workspace.take<float>(room);
  std::memset(scores, 0, static_cast<std::size_t>(room) * sizeof(float));
  Addition* lists[2];
  for (Addition*& list : lists) list = workspace.take<Addition>(2 * queries.most_terms());
  for (std::size_t w = first_window; w < end_window; ++w) {
    const WindowView& window = index.windows[w].view;
    const index_t first = index.windows[w].first, documents = window.documents();
    const auto find = [&](index_t query) {
      return find_lists(window, queries.begin(query), queries.end(query), index.settings.columns, lists[query % 2]);
    };
    index_t next = find(begin);
    for (index_t query = begin; query < end; ++query) {
      const index_t count = next;
      if (query + 1 < end) next = find(query + 1);
      BestDocuments& found = best[query - begin];
      if (count == 0) {
        found.take_zeros(documents, first);
        continue;
      }
      ++cost.windows;
      const Addition* own = lists[query % 2];
      for (index_t i = 0; i < count; ++i) cost.postings += own[i].list.count;
      score_window(window, own, count, scores);
      found.take_scores(scores, documents, first);
    }
  }
  return cost;
}

}  // namespace

SearchCost BestOfQueries::collect(const IndexContent& index, const Queries& queries, index_t k, int threads) {
  SearchCost total;
  total.predicted = queries.predicted();
  threads = useful_threads(kFlopsPerPosting * static_cast<double>(total.predicted + queries.count()), threads);
  const index_t windows = static_cast<index_t>(index.windows.size());
  const Division division(queries.count(), windows, threads);
  const index_t block = division.block, blocks = division.blocks, parts = division.parts;
  const index_t room = BestDocuments::room(k);
  ranks_.resize(static_cast<std::size_t>(queries.count() * parts * room));
  std::vector<BestDocuments> found;  // by block, then part, then query
  for (index_t i = 0; i < queries.count() * parts; ++i) found.emplace_back(ranks_.data() + i * room, k);
  const auto first_of = [&](index_t begin, index_t end, index_t part) { return begin * parts + part * (end - begin); };
  std::vector<SearchCost> costs(static_cast<std::size_t>(blocks * parts));
  parallel_for(
      blocks * parts, threads,
      [&](index_t item) {
        const index_t part = item % parts;
        const index_t begin = item / parts * block, end = std::min(queries.count(), begin + block);
        costs[item] = search_block(index, queries, begin, end, static_cast<std::size_t>(windows * part / parts),
                                   static_cast<std::size_t>(windows * (part + 1) / parts),
                                   found.data() + first_of(begin, end, part));
      },
      1);
  for (index_t query = 0; query < queries.count(); ++query) {
    const index_t begin = query / block * block, end = std::min(queries.count(), begin + block);
    BestDocuments& own = found[first_of(begin, end, 0) + query - begin];
    for (index_t part = 1; part < parts; ++part) own.take(found[first_of(begin, end, part) + query - begin]);
    best_.push_back(own);
  }
  for (const SearchCost& cost : costs) {
    total.postings += cost.postings;
    total.windows += cost.windows;
  }
  return total;
}

SearchCost search_exact(const IndexContent& index, const SparseRowsView& rows, const SearchOutput& out, int threads) {
  const Queries queries(index, rows);
  for (index_t query = 0; query < queries.count(); ++query) out.error_bound[query] = queries.error_bound(query);
  if (queries.count() == 0 || out.k == 0) return {};
  BestOfQueries best;
  const SearchCost cost = best.collect(index, queries, out.k, threads);
  for (index_t query = 0; query < queries.count(); ++query) {
    best.of(query).write_sorted(out.scores + query * out.k, out.ids + query * out.k);
  }
  return cost;
}

}  // namespace subspan
