// The exhaustive search: every posting of every term of a query is multiplied and added, in windows whose scores stay
// in the first-level cache. For a batch of queries a window's lists serve all of them before the next window's are
// read.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/search/accumulate.h"
#include "ops/search/best_documents.h"
#include "ops/search/queries.h"
#include "ops/search/search_index.h"

namespace subspan {
namespace {

constexpr index_t kMostQueriesPerBlock = 256;
// The first window is added up whole, and the threshold is still low after that.
constexpr index_t kLeastPrunedWindows = 16;
constexpr double kFlopsPerPosting = 15;  // of the scale of kFlopsPerThread: the time that a posting takes

// How a search is divided: queries into blocks, windows into parts, every part of every block a piece of work with hits
// of its own, the best of which are the best. Large blocks come first, since a window's lists are fetched once for each
// block, then parts of many windows, since a part begins without a threshold.
struct Division {
  index_t block, blocks, parts;

  // What pruning leaves out depends on what was found before: windows then stay in one part, whatever the threads.
  Division(index_t queries, index_t windows, index_t threads, bool prunes) {
    const index_t wanted = threads == 1 ? 1 : 4 * threads;
    const auto quotient = [](index_t a, index_t b) { return (a + b - 1) / b; };
    const index_t long_parts = prunes ? 1 : std::clamp<index_t>(windows / 8, 1, wanted);
    block = std::clamp<index_t>(quotient(queries * long_parts, wanted), 1, kMostQueriesPerBlock);
    blocks = quotient(queries, block);
    parts = prunes ? 1 : std::min(windows, quotient(wanted, blocks));
  }
};

// A list that a query adds.
struct Addition {
  PostingList list;
  float weight;
  std::uint32_t rank;  // of its term
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
    for (std::uint32_t i = 0; i < std::min(list.count, 128u); i += 32) __builtin_prefetch(list.ids + i);
    for (std::uint32_t i = 0; i < std::min(list.count, 128u); i += 16) __builtin_prefetch(list.values + 4 * i);
    *found++ = {list, weight, term->rank};
  };
  for (; term != end; ++term) {
    take(term->column, term->weight);
    if (negative) take(key_of(term->column, columns, true), -term->weight);
  }
  return found - start;
}

// Scores the windows of one index, of one type of values, for one query after the other.
template <ValueType type>
class WindowScorer {
 public:
  WindowScorer(const WindowView& window, float* scores) : window_(window), scores_(scores) {}

  // Adds up the lists whose terms have at least this rank; returns how many postings they have.
  std::uint64_t add_up(const Addition* lists, index_t count, std::uint32_t least_rank) {
    std::uint64_t postings = 0;
    for (const Addition* own = lists; own != lists + count; ++own) {
      if (own->rank < least_rank) continue;
      accumulate<type>(own->list, window_.documents(), own->weight, scores_);
      postings += own->list.count;
    }
    if constexpr (type == ValueType::u8) {
      for (index_t i = 0; i < window_.documents(); ++i) scores_[i] *= window_.scales()[i];
    }
    return postings;
  }

  // What the lists that were left out add to the score of a document. They are few and mostly long, and in a bitmap a
  // document is found at once.
  float score_of(const Addition* lists, index_t count, std::uint32_t end_rank, index_t document) const {
    float score = 0;
    for (const Addition* own = lists; own != lists + count; ++own) {
      const index_t place = own->rank < end_rank ? place_of(own->list, window_.documents(), document) : -1;
      if (place < 0) continue;
      score = multiply_add(score, own->weight, stored_value(type, own->list.values, static_cast<std::size_t>(place)));
    }
    return type == ValueType::u8 ? score * window_.scales()[document] : score;
  }

 private:
  const WindowView& window_;
  float* scores_;
};

// Queries begin ... end - 1 in the given windows; what is found for query i goes to `best[i - begin]`. While one query
// is added up, the lists of the next are fetched.
template <ValueType type>
SearchCost search_block(const IndexContent& index, const Queries& queries, const Pruning& pruning, index_t begin,
                        index_t end, std::size_t first_window, std::size_t end_window, BestDocuments* best) {
  SearchCost cost;
  Workspace workspace;
  const index_t room = index.settings.window;
  float* scores = workspace.take<float>(room);
  std::memset(scores, 0, static_cast<std::size_t>(room) * sizeof(float));
  Addition* lists[2];
  for (Addition*& list : lists) list = workspace.take<Addition>(2 * queries.most_terms());
  for (std::size_t w = first_window; w < end_window; ++w) {
    const WindowView& window = index.windows[w].verified();
    const index_t first = index.windows[w].first, documents = window.documents();
    WindowScorer<type> scorer(window, scores);
    const auto find = [&](index_t query) {
      return find_lists(window, queries.begin(query), queries.end(query), index.settings.columns, lists[query % 2]);
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
      const Addition* own = lists[query % 2];
      BestDocuments& found = best[query - begin];
      if (count == 0) {
        found.take_zeros(documents, first);
        continue;
      }
      const double threshold = found.threshold();
      Queries::Omission omitted;
      if (threshold > 0 && pruning.share > 0) omitted = queries.omission(query, pruning.share * threshold);
      if (omitted.terms == 0) {
        cost.postings += scorer.add_up(own, count, 0);
        ++cost.windows;
        found.take_scores(scores, documents, first);
        continue;
      }
      const std::uint64_t postings = scorer.add_up(own, count, omitted.terms);
      cost.postings += postings;
      if (postings == 0) continue;  // all scores are at most `omitted.most`, which is below the threshold
      ++cost.windows;
      found.take_scores(scores, documents, first, pruning.trust * omitted.most, [&](index_t document) {
        ++cost.looked_up;
        return scores[document] + scorer.score_of(own, count, omitted.terms, document);
      });
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

SearchCost search(const IndexContent& index, const SparseRowsView& rows, const Pruning& asked, const SearchOutput& out,
                  int threads) {
  const auto windows = static_cast<index_t>(index.windows.size());
  const Pruning pruning = windows < kLeastPrunedWindows ? Pruning{} : asked;
  const Queries queries(index, rows);
  for (index_t query = 0; query < queries.count(); ++query) out.error_bound[query] = queries.query(query).error_bound;
  SearchCost total;
  total.predicted = queries.predicted();
  if (queries.count() == 0 || out.k == 0) return total;
  threads = useful_threads(kFlopsPerPosting * static_cast<double>(total.predicted + queries.count()), threads);
  const Division division(queries.count(), windows, threads, pruning.share > 0);
  const index_t block = division.block, blocks = division.blocks, parts = division.parts;
  const index_t room = BestDocuments::room(out.k);
  std::vector<std::uint64_t> ranks(static_cast<std::size_t>(queries.count() * parts * room));
  std::vector<BestDocuments> found;  // by block, then part, then query
  for (index_t i = 0; i < queries.count() * parts; ++i) found.emplace_back(ranks.data() + i * room, out.k);
  const auto first_of = [&](index_t begin, index_t end, index_t part) { return begin * parts + part * (end - begin); };
  std::vector<SearchCost> costs(static_cast<std::size_t>(blocks * parts));
  parallel_for(
      blocks * parts, threads,
      [&](index_t item) {
        const index_t part = item % parts;
        const index_t begin = item / parts * block, end = std::min(queries.count(), begin + block);
        costs[item] = search_block_of(index.settings.values, index, queries, pruning, begin, end,
                                      static_cast<std::size_t>(windows * part / parts),
                                      static_cast<std::size_t>(windows * (part + 1) / parts),
                                      found.data() + first_of(begin, end, part));
      },
      1);
  for (index_t query = 0; query < queries.count(); ++query) {
    const index_t begin = query / block * block, end = std::min(queries.count(), begin + block);
    BestDocuments& own = found[first_of(begin, end, 0) + query - begin];
    for (index_t part = 1; part < parts; ++part) own.take(found[first_of(begin, end, part) + query - begin]);
    own.write_sorted(out.scores + query * out.k, out.ids + query * out.k);
  }
  for (const SearchCost& cost : costs) {
    total.postings += cost.postings;
    total.windows += cost.windows;
    total.looked_up += cost.looked_up;
  }
  return total;
}

}  // namespace subspan
