// Scores of chosen pairs of a query and a row, as an index of float32 values gives them.
#include "core/parallel.h"
#include "ops/search/multiply_add.h"
#include "ops/search/read_rows.h"
#include "ops/search/search_index.h"

namespace subspan {

void score_rows(const SparseRowsView& queries, const SparseRowsView& rows, index_t columns, const std::int64_t* ids,
                index_t per_query, float* scores, int threads) {
  struct Term {
    float weight;
    std::uint32_t place;  // of its column among the query's different columns
  };
  const index_t part = std::max<index_t>(1, (queries.rows + 4 * threads - 1) / (4 * threads));
  parallel_for((queries.rows + part - 1) / part, threads, [&](index_t item) {
    RowReader reader(columns);
    std::vector<std::uint32_t> place_of_column(static_cast<std::size_t>(columns), 0);  // + 1; 0: not in the query
    std::vector<Term> terms;
    std::vector<std::uint32_t> used;
    std::vector<float> values;
    for (index_t query = item * part; query < std::min(queries.rows, (item + 1) * part); ++query) {
      terms.clear();
      used.clear();
      detail::for_each_entry(queries, query, columns, [&](index_t column, double value) {
        std::uint32_t& place = place_of_column[static_cast<std::size_t>(column)];
        if (place == 0) {
          used.push_back(static_cast<std::uint32_t>(column));
          place = static_cast<std::uint32_t>(used.size());
        }
        terms.push_back({detail::finite_float(value, queries, query), place - 1});
      });
      for (index_t i = query * per_query; i < (query + 1) * per_query; ++i) {
        const index_t row = ids[i];
        CHECK(0 <= row && row < rows.rows, rows.op, ": ids: expected rows in 0 ... ", rows.rows - 1, ", got ", row);
        reader.read(rows, row);
        values.assign(used.size(), 0.0f);
        for (const RowEntry& entry : reader.entries()) {
          const std::uint32_t place = place_of_column[entry.column];
          if (place != 0) values[place - 1] = entry.value;
        }
        float score = 0;
        for (const Term& term : terms) score = multiply_add(score, term.weight, values[term.place]);
        scores[i] = score + 0.0f;  // -0 becomes 0
      }
      for (const std::uint32_t column : used) place_of_column[column] = 0;
    }
  });
}

}  // namespace subspan
