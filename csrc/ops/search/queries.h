// The queries of a search, copied and checked, with what each will cost and how exact its scores are.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/search/read_rows.h"
#include "ops/search/search_index.h"

namespace subspan {

struct QueryTerm {
  float weight;
  std::uint32_t column;
};

class Queries {
 public:
  Queries(const IndexContent& index, const SparseRowsView& rows) {
    const std::vector<TermSummary>& terms = *index.terms;
    starts_.reserve(static_cast<std::size_t>(rows.rows) + 1);
    error_bounds_.reserve(static_cast<std::size_t>(rows.rows));
    starts_.push_back(0);
    for (index_t row = 0; row < rows.rows; ++row) {
      double weights = 0, largest = 0, tiny = 0;  // sums of magnitudes: of weights, and of all that can be added
      detail::for_each_entry(rows, row, index.settings.columns, [&](index_t column, double value) {
        const float weight = detail::finite_float(value, rows, row);
        const TermSummary& term = terms[static_cast<std::size_t>(column)];
        if (weight == 0 || term.count == 0) return;  // adds nothing anywhere
        terms_.push_back({weight, static_cast<std::uint32_t>(column)});
        predicted_ += term.count;
        weights += std::fabs(weight);
        largest += std::fabs(weight) * static_cast<double>(std::max(term.high, -term.low));
        tiny += std::fabs(weight) * 0x1p-25;
      });
      const double steps = index.settings.values == ValueType::u8 ? 255 * weights : 0;
      CHECK(std::max(largest, steps) < kMostScore, rows.op, ": ", rows.name,
            ": expected scores in the range of float32, got up to ", std::max(largest, steps), " in row ", row);
      const std::size_t n = terms_.size() - starts_.back();
      most_terms_ = std::max(most_terms_, static_cast<index_t>(n));
      starts_.push_back(terms_.size());
      error_bounds_.push_back(error_bound(index, n, weights, largest, tiny));
    }
  }

  // Without the terms that cost most for what they can add, as long as those can add no more than `omitted` of the sum
  // of what all terms can add. Rare terms stay: they cost nothing.
  Queries without_costly_terms(const IndexContent& index, double omitted) const {
    Queries kept;
    kept.starts_.push_back(0);
    kept.error_bounds_ = error_bounds_;
    std::vector<const QueryTerm*> order;
    std::vector<char> leave;
    const auto rare = static_cast<std::uint64_t>(kRareShare * static_cast<double>(index.documents));
    for (index_t query = 0; query < count(); ++query) {
      const QueryTerm* const first = begin(query);
      order.clear();
      double allowed = 0;
      for (const QueryTerm* term = first; term != end(query); ++term) {
        allowed += omitted * most(index, *term);
        if (summary(index, *term).count > rare) order.push_back(term);
      }
      std::sort(order.begin(), order.end(), [&](const QueryTerm* a, const QueryTerm* b) {
        const double left = static_cast<double>(summary(index, *a).count) * most(index, *b);
        const double right = static_cast<double>(summary(index, *b).count) * most(index, *a);
        return left != right ? left > right : a < b;
      });
      const double share = allowed;
      leave.assign(static_cast<std::size_t>(end(query) - first), 0);
      for (const QueryTerm* term : order) {
        if (most(index, *term) > allowed) continue;
        allowed -= most(index, *term);
        leave[static_cast<std::size_t>(term - first)] = 1;
      }
      for (const QueryTerm* term = first; term != end(query); ++term) {
        if (leave[static_cast<std::size_t>(term - first)] != 0) continue;
        kept.terms_.push_back(*term);
        kept.predicted_ += summary(index, *term).count;
      }
      kept.starts_.push_back(kept.terms_.size());
      kept.omitted_.push_back(share - allowed);
    }
    kept.most_terms_ = most_terms_;
    return kept;
  }

  index_t count() const { return static_cast<index_t>(error_bounds_.size()); }
  const QueryTerm* begin(index_t query) const { return terms_.data() + starts_[static_cast<std::size_t>(query)]; }
  const QueryTerm* end(index_t query) const { return begin(query + 1); }
  // The most that the terms left out can add.
  double omitted(index_t query) const { return omitted_[static_cast<std::size_t>(query)]; }
  index_t term_count() const { return static_cast<index_t>(terms_.size()); }
  index_t most_terms() const { return most_terms_; }
  std::uint64_t predicted() const { return predicted_; }
  // No score of this query is farther from the inner product of what was indexed, in float32 and before quantisation.
  double error_bound(index_t query) const { return error_bounds_[static_cast<std::size_t>(query)]; }

 private:
  static constexpr double kRareShare = 0.02;
  Queries() = default;

  static const TermSummary& summary(const IndexContent& index, const QueryTerm& term) {
    return (*index.terms)[term.column];
  }
  static double most(const IndexContent& index, const QueryTerm& term) {
    return std::fabs(term.weight) * static_cast<double>(std::max(summary(index, term).high, -summary(index, term).low));
  }

  static constexpr double kMostScore = 3e38;

  // Each of n rounded steps, and the product with the scale, is off by at most a unit of 2^-24 of what was added so far
  // (Higham, Accuracy and Stability, 3.1); where float32 ends below, by 2^-149. Rounding to float16 is off by 2^-11
  // of a value or, below its normal numbers, 2^-25; 8 bits by half a step.
  static double error_bound(const IndexContent& index, std::size_t n, double weights, double largest, double tiny) {
    const double steps = static_cast<double>(n) + 2;
    double bound = steps * 0x1p-24 * 1.01 * largest + steps * 0x1p-149;
    if (index.settings.values == ValueType::f16) bound += (largest * 0x1p-11 + tiny) * 1.01;
    if (index.settings.values == ValueType::u8) bound += weights * (index.largest_scale * 0.5 * 1.01 + 0x1p-141);
    return bound;
  }

  std::vector<QueryTerm> terms_;
  std::vector<std::size_t> starts_;
  std::vector<double> error_bounds_;
  std::vector<double> omitted_;
  std::uint64_t predicted_ = 0;
  index_t most_terms_ = 0;
};

}  // namespace subspan
