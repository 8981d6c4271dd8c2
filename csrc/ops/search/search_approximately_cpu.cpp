// The approximate search: the sketch gives candidates, and these are scored one by one.
//
// A candidate's values are spread over as many lists as the query has terms, hardly one of them in a cache. Some
// candidates are therefore scored at once, all of them one step after the other, and each step fetches what the next
// one reads.

#include "core/parallel.h"
#include "ops/search/best_documents.h"
#include "ops/search/multiply_add.h"
#include "ops/search/queries.h"
#include "ops/search/sketch.h"

namespace subspan {
namespace {

// Candidates are an eighth of the documents at most: with more, adding everything up costs less.
constexpr index_t kDocumentsPerCandidate = 8;
constexpr index_t kTogether = 48;
constexpr index_t kMostQueries = 256;        // whose candidates are scored together
constexpr double kFlopsPerCandidate = 3000;  // of the scale of kFlopsPerThread: the time that a candidate takes

struct Lookup {
  PostingList list;
  float weight;
  index_t place;  // of the document's value in the list; -1: it has none
};

// Where a document would be in a list, were its documents spread evenly.
index_t likely_place(const PostingList& list, index_t documents, index_t document) {
  return std::min<index_t>(list.count - 1, document * list.count / documents);
}

// As place_of, from a likely place on.
index_t place_near(const PostingList& list, index_t documents, index_t document) {
  if (list.bitmap) return place_of(list, documents, document);
  index_t begin = likely_place(list, documents, document), end = begin + 1, step = 16;
  while (begin > 0 && list.ids[begin] > document) {
    end = begin + 1;
    begin = std::max<index_t>(0, begin - step);
    step *= 2;
  }
  while (end < list.count && list.ids[end - 1] < document) {
    begin = end;
    end = std::min<index_t>(list.count, end + step);
    step *= 2;
  }
  const std::uint16_t* found = std::lower_bound(list.ids + begin, list.ids + end, document);
  return found != list.ids + end && *found == document ? found - list.ids : -1;
}

// One pair of a query and a document.
struct Candidate {
  std::int64_t document;
  index_t place;  // in the arrays of all candidates, those of a query together
};

class CandidateScorer {
 public:
  CandidateScorer(const IndexContent& index, const Queries& queries, index_t candidates)
      : index_(index), queries_(queries), candidates_(candidates) {
    lookups_.resize(static_cast<std::size_t>(2 * kTogether * queries.most_terms()));
  }

  // scores[its place] of each of count <= kTogether candidates.
  void score(const Candidate* own, index_t count, float* scores) {
    const index_t columns = index_.settings.columns, room = index_.settings.window;
    const WindowView* views[kTogether];
    for (index_t i = 0; i < count; ++i) {
      views[i] = &index_.windows[static_cast<std::size_t>(own[i].document / room)].verified();
      for_each_term(own[i], [&](const QueryTerm& term) { views[i]->prefetch(term.column); });
    }
    std::size_t ends[kTogether], end = 0;
    for (index_t i = 0; i < count; ++i) {
      const WindowView& window = *views[i];
      const bool negative = window.has_negative_lists(columns);
      const index_t document = own[i].document % room;
      const auto take = [&](index_t key, float weight) {
        const PostingList list = window.find(key);
        if (list.count == 0) return;
        lookups_[end++] = {list, weight, -1};
        if (list.bitmap) {
          __builtin_prefetch(list.ids + document / 64 * 4);
          __builtin_prefetch(list.ids + 4 * bitmap_words(window.documents()) + document / 64);
        } else {
          __builtin_prefetch(list.ids + likely_place(list, window.documents(), document));
        }
      };
      for_each_term(own[i], [&](const QueryTerm& term) {
        take(term.column, term.weight);
        if (negative) take(key_of(term.column, columns, true), -term.weight);
      });
      ends[i] = end;
    }
    std::size_t at = 0;
    for (index_t i = 0; i < count; ++i) {
      for (; at < ends[i]; ++at) {
        Lookup& lookup = lookups_[at];
        lookup.place = place_near(lookup.list, views[i]->documents(), own[i].document % room);
        if (lookup.place < 0) continue;
        __builtin_prefetch(lookup.list.values + static_cast<std::size_t>(lookup.place) * value_bytes(views[i]->type()));
      }
    }
    at = 0;
    for (index_t i = 0; i < count; ++i) {
      const ValueType type = views[i]->type();
      float score = 0;
      for (; at < ends[i]; ++at) {
        const Lookup& lookup = lookups_[at];
        if (lookup.place < 0) continue;
        const float value = stored_value(type, lookup.list.values, static_cast<std::size_t>(lookup.place));
        score = multiply_add(score, lookup.weight, value);
      }
      if (type == ValueType::u8) score *= views[i]->scales()[own[i].document % room];
      scores[own[i].place] = score;
    }
  }

 private:
  template <class Body>
  void for_each_term(const Candidate& own, Body&& body) const {
    const index_t query = own.place / candidates_;
    for (const QueryTerm* term = queries_.begin(query); term != queries_.end(query); ++term) body(*term);
  }

  const IndexContent& index_;
  const Queries& queries_;
  index_t candidates_;
  std::vector<Lookup> lookups_;
};

}  // namespace

SearchCost search_approximately(const IndexContent& index, const SparseRowsView& rows, index_t candidates,
                                const SearchOutput& out, int threads) {
  candidates = std::max(candidates, out.k);
  if (candidates > index.documents / kDocumentsPerCandidate) return search(index, rows, out, threads);
  const Queries queries(index, rows);
  queries.write_bounds(out.error_bound);
  const auto entries = static_cast<std::size_t>(queries.count() * candidates);
  std::vector<float> scores(entries);
  std::vector<std::int64_t> ids(entries);
  SearchCost cost = search_sketch(index.sketch->windows(index, threads), queries, *index.terms, candidates,
                                  scores.data(), ids.data(), threads);
  cost.predicted = queries.predicted();
  cost.looked_up = entries;
  threads = useful_threads(kFlopsPerCandidate * static_cast<double>(entries), threads);
  const index_t part = std::clamp<index_t>((queries.count() + 4 * threads - 1) / (4 * threads), 1, kMostQueries);
  parallel_for((queries.count() + part - 1) / part, threads, [&](index_t item) {
    // By document: what one candidate brings to the cache, the next one may need as well.
    const index_t first = item * part, end = std::min(queries.count(), first + part);
    std::vector<Candidate> own;
    for (index_t i = first * candidates; i < end * candidates; ++i) own.push_back({ids[i], i});
    std::sort(own.begin(), own.end(), [](const Candidate& a, const Candidate& b) {
      return a.document != b.document ? a.document < b.document : a.place < b.place;
    });
    CandidateScorer scorer(index, queries, candidates);
    for (std::size_t i = 0; i < own.size(); i += kTogether) {
      scorer.score(own.data() + i, std::min<index_t>(kTogether, own.size() - i), scores.data());
    }
    std::vector<std::uint64_t> ranks(static_cast<std::size_t>(BestDocuments::room(out.k)));
    for (index_t query = first; query < end; ++query) {
      BestDocuments best(ranks.data(), out.k);
      for (index_t i = query * candidates; i < (query + 1) * candidates; ++i) best.offer_any(scores[i], ids[i]);
      best.write_sorted(out.scores + query * out.k, out.ids + query * out.k);
    }
  });
  return cost;
}

}  // namespace subspan
