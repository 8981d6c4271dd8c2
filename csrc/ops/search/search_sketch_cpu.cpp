// The search of a sketch: integers of 16 bits are added up, of which a vector and the cache hold twice as many as of
// float32.
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/search/best_documents.h"
#include "ops/search/division.h"
#include "ops/search/sketch.h"

namespace subspan {
namespace {

using Score = std::int16_t;
// What the largest score that a query can have becomes: with it no product of a step and a value overflows.
constexpr double kLargestScore = 16000;
constexpr index_t kScan = 128;  // scores that are compared with the threshold at once
constexpr double kQueryMass = 0.95;
constexpr index_t kLongPart = 32;  // windows: many candidates are offered before the first are known to be bad
constexpr double kFlopsPerPosting = 15;

struct WeightedList {
  const std::uint16_t* ids;
  const std::int8_t* values;
  index_t count;
  Score weight;  // times 256ths of a value's steps
};

// weight * value / 256, rounded down; the high half of a product of 16 bits.
Score product(Score weight, std::int8_t value) {
  const auto shifted = static_cast<Score>(value * 256);
  return static_cast<Score>((weight * shifted) >> 16);
}

void accumulate(const WeightedList& list, Score* scores) {
  constexpr index_t block = 32;
  index_t i = 0;
  for (; i + block <= list.count; i += block) {
    Score added[block];
    for (index_t k = 0; k < block; ++k) added[k] = product(list.weight, list.values[i + k]);
#pragma GCC unroll 8
    for (index_t k = 0; k < block; ++k) {
      Score& score = scores[list.ids[i + k]];
      score = static_cast<Score>(score + added[k]);
    }
  }
  for (; i < list.count; ++i) {
    Score& score = scores[list.ids[i]];
    score = static_cast<Score>(score + product(list.weight, list.values[i]));
  }
}

// The terms of queries that decide: those that can add most, until they have the share kQueryMass of what the squares
// of these numbers add up to. In the order of the query.
class Decisive {
 public:
  Decisive(const Queries& queries, const std::vector<TermSummary>& terms) {
    struct Part {
      double square;
      std::size_t place;
    };
    std::vector<Part> parts;
    starts_.push_back(0);
    for (index_t query = 0; query < queries.count(); ++query) {
      const QueryTerm* const begin = queries.begin(query);
      parts.clear();
      double total = 0, sum = 0, largest = 0;
      for (const QueryTerm* term = begin; term != queries.end(query); ++term) {
        const TermSummary& summary = terms[term->column];
        const double most = std::fabs(term->weight) * static_cast<double>(std::max(summary.high, -summary.low));
        parts.push_back({most * most, static_cast<std::size_t>(term - begin)});
        total += most * most;
      }
      std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
        return a.square != b.square ? a.square > b.square : a.place < b.place;
      });
      std::size_t kept = 0;
      while (kept < parts.size() && sum < kQueryMass * total) sum += parts[kept++].square;
      std::sort(parts.begin(), parts.begin() + kept, [](const Part& a, const Part& b) { return a.place < b.place; });
      for (std::size_t i = 0; i < kept; ++i) {
        terms_.push_back(begin[parts[i].place]);
        largest += std::sqrt(parts[i].square);
      }
      starts_.push_back(terms_.size());
      factors_.push_back(largest > 0 ? kLargestScore / largest : 0);
      most_terms_ = std::max(most_terms_, static_cast<index_t>(kept));
    }
  }
  const QueryTerm* begin(index_t query) const { return terms_.data() + starts_[query]; }
  const QueryTerm* end(index_t query) const { return terms_.data() + starts_[query + 1]; }
  // By which scores are multiplied to be integers.
  double factor(index_t query) const { return factors_[query]; }
  index_t most_terms() const { return most_terms_; }

 private:
  std::vector<QueryTerm> terms_;
  std::vector<std::size_t> starts_;
  std::vector<double> factors_;
  index_t most_terms_ = 0;
};

index_t find_lists(const SketchWindow& window, const QueryTerm* term, const QueryTerm* end, double factor,
                   WeightedList* found) {
  const WeightedList* const start = found;
  for (; term != end; ++term) {
    const DirectoryEntry& entry = window.directory[term->column / 64];
    const std::uint64_t bit = std::uint64_t{1} << (term->column % 64);
    if ((entry.present & bit) == 0) continue;
    const SketchList* list = window.lists.data() + entry.before + __builtin_popcountll(entry.present & (bit - 1));
    const double weight = std::nearbyint(term->weight * static_cast<double>(list->step) * factor * 256);
    const index_t first = list->start, count = list[1].start - list->start;
    *found++ = {window.ids.data() + first, window.values.data() + first, count,
                static_cast<Score>(std::clamp(weight, -32767.0, 32767.0))};
    for (index_t i = 0; i < std::min<index_t>(count, 256); i += 32) __builtin_prefetch(found[-1].ids + i);
    for (index_t i = 0; i < std::min<index_t>(count, 256); i += 64) __builtin_prefetch(found[-1].values + i);
  }
  return found - start;
}

// body(i) for those of kScan scores that are above `least`, rising.
template <class Body>
void for_each_above(const Score* scores, Score least, Body&& body) {
#if defined(__AVX512BW__)
  const __m512i bound = _mm512_set1_epi16(least);
  const auto at = [scores](index_t v) { return _mm512_loadu_si512(scores + 32 * v); };
  const __m512i largest = _mm512_max_epi16(_mm512_max_epi16(at(0), at(1)), _mm512_max_epi16(at(2), at(3)));
  if (_mm512_cmpgt_epi16_mask(largest, bound) == 0) return;
  for (index_t v = 0; v < kScan / 32; ++v) {
    for (unsigned above = _mm512_cmpgt_epi16_mask(at(v), bound); above != 0; above &= above - 1) {
      body(32 * v + __builtin_ctz(above));
    }
  }
#else
  Score largest = scores[0];
  for (index_t i = 1; i < kScan; ++i) largest = std::max(largest, scores[i]);
  if (largest <= least) return;
  for (index_t i = 0; i < kScan; ++i) {
    if (scores[i] > least) body(i);
  }
#endif
}

// What `candidates` documents are above: split into groups, each has its largest score, and one of the largest of these
// bounds that many. Minus infinity where there are too few documents.
float first_bound(const Score* scores, index_t documents, index_t candidates) {
  constexpr index_t step = 128, most = 4096;
  const index_t groups = (2 * candidates + step - 1) / step * step;
  if (groups > most || documents < 4 * groups) return -BestDocuments::kInfinity;
  Score bounds[most];
  std::copy_n(scores, groups, bounds);
  for (const Score* from = scores + groups; from + groups <= scores + documents; from += groups) {
    for (index_t i = 0; i < groups; ++i) bounds[i] = std::max(bounds[i], from[i]);
  }
  std::nth_element(bounds, bounds + candidates - 1, bounds + groups, std::greater<>());
  return static_cast<float>(bounds[candidates - 1]) - 0.5f;
}

// Offers the scores of a window, a multiple of kScan of them, and leaves zeros.
void take_scores(Score* scores, const SketchWindow& window, BestDocuments& best, index_t candidates) {
  const index_t scans = (window.documents + kScan - 1) / kScan;
  if (best.threshold() == -BestDocuments::kInfinity) best.raise_to(first_bound(scores, window.documents, candidates));
  const auto offer = [&](index_t i) {
    if (i < window.documents) best.offer(scores[i], window.first + i);
  };
  for (index_t scan = 0; scan < scans; ++scan) {
    Score* const own = scores + scan * kScan;
    const float least = std::floor(best.threshold());
    if (least >= -32768) {
      for_each_above(own, static_cast<Score>(std::min(least, 32767.0f)), [&](index_t i) { offer(scan * kScan + i); });
    } else {
      for (index_t i = 0; i < kScan; ++i) offer(scan * kScan + i);
    }
    std::memset(own, 0, kScan * sizeof(Score));
  }
}

}  // namespace

SearchCost search_sketch(const SketchWindows& windows, const Queries& queries, const std::vector<TermSummary>& terms,
                         index_t candidates, float* scores, std::int64_t* ids, int threads) {
  const Decisive decisive(queries, terms);
  threads = useful_threads(kFlopsPerPosting * static_cast<double>(queries.predicted() + queries.count()), threads);
  SearchCost total;
  search_divided(
      false, queries.count(), static_cast<index_t>(windows.size()), kLongPart, threads, candidates, scores, ids, total,
      [&](index_t begin, index_t end, index_t first_window, index_t end_window, BestDocuments* best) {
        SearchCost cost;
        index_t room = 0;
        for (index_t w = first_window; w < end_window; ++w) {
          room = std::max(room, (windows[static_cast<std::size_t>(w)]->documents + kScan - 1) / kScan * kScan);
        }
        Workspace workspace;
        auto* sums = workspace.take<Score>(room);
        std::memset(sums, 0, static_cast<std::size_t>(room) * sizeof(Score));
        WeightedList* lists[2];
        for (WeightedList*& list : lists) list = workspace.take<WeightedList>(decisive.most_terms());
        for (index_t w = first_window; w < end_window; ++w) {
          const SketchWindow& window = *windows[static_cast<std::size_t>(w)];
          const auto find = [&](index_t query) {
            return find_lists(window, decisive.begin(query), decisive.end(query), decisive.factor(query),
                              lists[query % 2]);
          };
          index_t next = find(begin);
          for (index_t query = begin; query < end; ++query) {
            const index_t count = next;
            if (query + 1 < end) next = find(query + 1);
            for (index_t i = 0; i < count; ++i) {
              accumulate(lists[query % 2][i], sums);
              cost.postings += static_cast<std::uint64_t>(lists[query % 2][i].count);
            }
            ++cost.windows;
            take_scores(sums, window, best[query - begin], candidates);
          }
        }
        return cost;
      });
  for (index_t query = 0; query < queries.count(); ++query) {
    const double factor = decisive.factor(query);
    for (index_t i = 0; i < candidates; ++i) {
      float& score = scores[query * candidates + i];
      score = static_cast<float>(factor > 0 ? score / factor : 0);
    }
  }
  return total;
}

}  // namespace subspan
