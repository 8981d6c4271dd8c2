// How a search is divided among threads, whatever it adds up.
#pragma once
#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "ops/search/best_documents.h"
#include "ops/search/queries.h"

namespace subspan {

// How a search is divided: queries into blocks, windows into parts, every part of every block a piece of work with hits
// of its own, the best of which are the best. Large blocks come first, since a window's lists are fetched once for each
// block, then parts of many windows, since a part begins without a threshold.
struct Division {
  static constexpr index_t kMostQueriesPerBlock = 256;
  index_t block, blocks, parts;

  Division(index_t queries, index_t windows, index_t long_part, index_t threads) {
    const index_t wanted = threads == 1 ? 1 : 4 * threads;
    const auto quotient = [](index_t a, index_t b) { return (a + b - 1) / b; };
    const index_t long_parts = std::clamp<index_t>(windows / long_part, 1, wanted);
    block = std::clamp<index_t>(quotient(queries * long_parts, wanted), 1, kMostQueriesPerBlock);
    blocks = quotient(queries, block);
    parts = std::min(windows, quotient(wanted, blocks));
  }
};

// body(first query, end, first window, end, best documents of each of these queries) gives the cost of a piece of work;
// scores and ids (queries, k) are those of the best of all pieces, in no order unless they are to be `sorted`; costs
// are added to `total`.
template <class Body>
void search_divided(bool sorted, index_t queries, index_t windows, index_t long_part, int threads, index_t k,
                    float* scores, std::int64_t* ids, SearchCost& total, const Body& body) {
  if (queries == 0 || k == 0) return;
  const Division division(queries, windows, long_part, threads);
  const index_t block = division.block, blocks = division.blocks, parts = division.parts;
  const index_t room = BestDocuments::room(k);
  std::vector<std::uint64_t> ranks(static_cast<std::size_t>(queries * parts * room));
  std::vector<BestDocuments> found;  // by block, then part, then query
  for (index_t i = 0; i < queries * parts; ++i) found.emplace_back(ranks.data() + i * room, k);
  const auto first_of = [&](index_t begin, index_t end, index_t part) { return begin * parts + part * (end - begin); };
  std::vector<SearchCost> costs(static_cast<std::size_t>(blocks * parts));
  parallel_for(
      blocks * parts, threads,
      [&](index_t item) {
        const index_t part = item % parts;
        const index_t begin = item / parts * block, end = std::min(queries, begin + block);
        costs[item] = body(begin, end, windows * part / parts, windows * (part + 1) / parts,
                           found.data() + first_of(begin, end, part));
      },
      1);
  for (index_t query = 0; query < queries; ++query) {
    const index_t begin = query / block * block, end = std::min(queries, begin + block);
    BestDocuments& own = found[first_of(begin, end, 0) + query - begin];
    for (index_t part = 1; part < parts; ++part) own.take(found[first_of(begin, end, part) + query - begin]);
    sorted ? own.write_sorted(scores + query * k, ids + query * k) : own.write(scores + query * k, ids + query * k);
  }
  for (const SearchCost& cost : costs) total += cost;
}

}  // namespace subspan
