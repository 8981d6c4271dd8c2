// The exhaustive search: every posting of every term of a query is multiplied and added, in windows whose scores stay
// in the first-level cache. For a batch of queries a window's lists serve all of them before the next window's are
// read.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/search/accumulate.h"
#include "ops/search/division.h"

namespace subspan {
namespace {

constexpr index_t kLongPart = 8;         // windows
constexpr double kFlopsPerPosting = 15;  // of the scale of kFlopsPerThread: the time that a posting takes

// A list that a query adds.
struct Addition {
  PostingList list;
  float weight;
};

// The lists of a query in a window, in the order of its terms, on their way to the cache; returns how many. `found` has
// room for two for each term.
index_t find_lists(const WindowView& window, const QueryTerm* term, const QueryTerm* end, index_t columns,
                   Addition* found) {
  const Addition* const start = found;
  const bool negative = window.has_negative_lists(columns);
  const auto take = [&](index_t key, float weight) {
    const PostingList list = window.find(key);
    if (list.count == 0) return;
    // The processor fetches on by itself once a list is read in order for a while.
    for (std::uint32_t i = 0; i < std::min(list.count, 128u); i += 32) __builtin_prefetch(list.ids + i);
    for (std::uint32_t i = 0; i < std::min(list.count, 128u); i += 16) __builtin_prefetch(list.values + 4 * i);
    *found++ = {list, weight};
  };
  for (; term != end; ++term) {
    take(term->column, term->weight);
    if (negative) take(key_of(term->column, columns, true), -term->weight);
  }
  return found - start;
}

// Adds up the lists of a query in a window; returns how many postings they have.
template <ValueType type>
std::uint64_t add_up(const WindowView& window, const Addition* lists, index_t count, float* scores) {
  std::uint64_t postings = 0;
  for (const Addition* own = lists; own != lists + count; ++own) {
    accumulate<type>(own->list, window.documents(), own->weight, scores);
    postings += own->list.count;
  }
  if constexpr (type == ValueType::u8) {
    for (index_t i = 0; i < window.documents(); ++i) scores[i] *= window.scales()[i];
  }
  return postings;
}

// Queries begin ... end - 1 in the given windows; what is found for query i goes to `best[i - begin]`. While one query
// is added up, the lists of the next are fetched.
template <ValueType type>
SearchCost search_block(const IndexContent& index, const Queries& queries, index_t begin, index_t end,
                        index_t first_window, index_t end_window, BestDocuments* best) {
  const IndexSettings& settings = index.settings;
  SearchCost cost;
  Workspace workspace;
  float* scores = workspace.take<float>(settings.window);
  std::memset(scores, 0, static_cast<std::size_t>(settings.window) * sizeof(float));
  Addition* lists[2];
  for (Addition*& list : lists) list = workspace.take<Addition>(2 * queries.most_terms());
  for (index_t w = first_window; w < end_window; ++w) {
    const WindowView& window = index.windows[static_cast<std::size_t>(w)].verified();
    const index_t first = index.windows[static_cast<std::size_t>(w)].first, documents = window.documents();
    const auto find = [&](index_t query) {
      return find_lists(window, queries.begin(query), queries.end(query), settings.columns, lists[query % 2]);
    };
    // A query's lists are found two queries ahead, and are on their way one query ahead.
    const auto prefetch = [&](index_t query) {
      if (query >= end) return;
      for (const QueryTerm* term = queries.begin(query); term != queries.end(query); ++term) {
        window.prefetch(term->column);
      }
    };
    prefetch(begin);
    prefetch(begin + 1);
    index_t next = find(begin);
    for (index_t query = begin; query < end; ++query) {
      const index_t count = next;
      prefetch(query + 2);
      if (query + 1 < end) next = find(query + 1);
      BestDocuments& found = best[query - begin];
      if (count == 0) {
        found.take_zeros(documents, first);
        continue;
      }
      cost.postings += add_up<type>(window, lists[query % 2], count, scores);
      ++cost.windows;
      found.take_scores(scores, documents, first);
    }
  }
  return cost;
}

template <class... Arguments>
SearchCost search_block_of(ValueType type, const Arguments&... arguments) {
  switch (type) {
    case ValueType::f32: return search_block<ValueType::f32>(arguments...);
    case ValueType::f16: return search_block<ValueType::f16>(arguments...);
    default: return search_block<ValueType::u8>(arguments...);
  }
}

}  // namespace

SearchCost search(const IndexContent& index, const SparseRowsView& rows, const SearchOutput& out, int threads) {
  const Queries queries(index, rows);
  queries.write_bounds(out.error_bound);
  threads = useful_threads(kFlopsPerPosting * static_cast<double>(queries.predicted() + queries.count()), threads);
  SearchCost total;
  search_divided(
      true, queries.count(), static_cast<index_t>(index.windows.size()), kLongPart, threads, out.k, out.scores, out.ids,
      total, [&](index_t begin, index_t end, index_t first_window, index_t end_window, BestDocuments* best) {
        return search_block_of(index.settings.values, index, queries, begin, end, first_window, end_window, best);
      });
  total.predicted = queries.predicted();
  return total;
}

}  // namespace subspan
