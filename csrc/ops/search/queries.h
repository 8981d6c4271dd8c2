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

struct Query {
  std::size_t first = 0, end = 0;  // terms
  double largest = 0;              // score that a document can have, if it had the largest values of all its columns
  double error_bound = 0;          // no score is farther from the inner product of what was indexed
};

class Queries {
 public:
  Queries(const IndexContent& index, const SparseRowsView& rows) {
    const std::vector<TermSummary>& terms = *index.terms;
    queries_.reserve(static_cast<std::size_t>(rows.rows));
    for (index_t row = 0; row < rows.rows; ++row) {
      Query query;
      query.first = terms_.size();
      double weights = 0, largest = 0;  // sums of magnitudes: of weights, and of all that can be added
      detail::for_each_entry(rows, row, index.settings.columns, [&](index_t column, double value) {
        const float weight = detail::finite_float(value, rows, row);
        const TermSummary& term = terms[static_cast<std::size_t>(column)];
        if (weight == 0 || term.count == 0) return;  // adds nothing anywhere
        terms_.push_back({weight, static_cast<std::uint32_t>(column)});
        predicted_ += term.count;
        weights += std::fabs(weight);
        largest += std::fabs(weight) * static_cast<double>(std::max(term.high, -term.low));
      });
      const double steps = index.settings.values == ValueType::u8 ? 255 * weights : 0;
      CHECK(std::max(largest, steps) < kMostScore, rows.op, ": ", rows.name,
            ": expected scores in the range of float32, got up to ", std::max(largest, steps), " in row ",
            rows.first + row);
      query.end = terms_.size();
      query.largest = largest;
      most_terms_ = std::max(most_terms_, static_cast<index_t>(query.end - query.first));
      bound_errors(index.settings.values, index.largest_scale, weights, largest, query);
      queries_.push_back(query);
    }
  }

  index_t count() const { return static_cast<index_t>(queries_.size()); }
  const Query& query(index_t number) const { return queries_[static_cast<std::size_t>(number)]; }
  const QueryTerm* begin(index_t number) const { return terms_.data() + query(number).first; }
  const QueryTerm* end(index_t number) const { return terms_.data() + query(number).end; }
  index_t most_terms() const { return most_terms_; }
  std::uint64_t predicted() const { return predicted_; }

  void write_bounds(double* bounds) const {
    for (const Query& query : queries_) *bounds++ = query.error_bound;
  }

 private:
  static constexpr double kMostScore = 3e38;

  // Each of n rounded steps, and the roundings of weights, values and scales, are off by at most 2^-24 of what was
  // added so far (Higham, Accuracy and Stability, 3.1); where float32 ends below, by 2^-149. Rounding to float16 is off
  // by 2^-11 of a value or, below its normal numbers, 2^-25; 8 bits by half a step.
  static void bound_errors(ValueType type, double largest_scale, double weights, double largest, Query& query) {
    const double steps = static_cast<double>(query.end - query.first) + 4;
    query.error_bound = steps * (0x1p-24 * 1.01 * largest + 0x1p-149);
    if (type == ValueType::f16) query.error_bound += (largest * 0x1p-11 + weights * 0x1p-25) * 1.01;
    if (type == ValueType::u8) query.error_bound += weights * (largest_scale * 0.5 * 1.01 + 0x1p-141);
  }

  std::vector<QueryTerm> terms_;
  std::vector<Query> queries_;
  std::uint64_t predicted_ = 0;
  index_t most_terms_ = 0;
};

}  // namespace subspan
