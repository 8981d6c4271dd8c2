// The k best documents of each query of a search, by all of its terms.
#pragma once
#include <vector>

#include "ops/search/best_documents.h"
#include "ops/search/queries.h"

namespace subspan {

class BestOfQueries {
 public:
  // For at least one query and k >= 1, once.
  SearchCost collect(const IndexContent& index, const Queries& queries, index_t k, int threads);
  BestDocuments& of(index_t query) { return best_[static_cast<std::size_t>(query)]; }

 private:
  std::vector<std::uint64_t> ranks_;
  std::vector<BestDocuments> best_;
};

}  // namespace subspan
