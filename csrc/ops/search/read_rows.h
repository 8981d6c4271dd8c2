// Reads rows of CSR that Python holds: bounds and values are checked as they are read.
#pragma once
#include <cmath>
#include <vector>

#include "core/check.h"
#include "ops/search/search_index.h"

namespace subspan {

struct RowEntry {
  std::uint32_t column;
  float value;
};

namespace detail {

// body(column, value as float64) for the entries of a row as they come.
template <class Index, class Value, class Body>
inline void for_each_entry(const SparseRowsView& rows, index_t row, index_t columns, Body&& body) {
  const index_t begin = rows.offsets[row], end = rows.offsets[row + 1];
  CHECK(0 <= begin && begin <= end && end <= rows.entries, rows.op, ": ", rows.name,
        ": expected offsets that rise from 0 to ", rows.entries, ", got ", begin, ", ", end);
  const auto* indices = static_cast<const Index*>(rows.columns_of);
  const auto* values = static_cast<const Value*>(rows.values);
  for (index_t i = begin; i < end; ++i) {
    const index_t column = indices[i];
    CHECK(0 <= column && column < columns, rows.op, ": ", rows.name, ": expected columns in 0 ... ", columns - 1,
          ", got ", column, " in row ", rows.first + row);
    body(column, static_cast<double>(values[i]));
  }
}

template <class Body>
inline void for_each_entry(const SparseRowsView& rows, index_t row, index_t columns, Body&& body) {
  const bool wide = rows.index_type == DType::i64;
  if (rows.value_type == DType::f64) {
    wide ? for_each_entry<std::int64_t, double>(rows, row, columns, body)
         : for_each_entry<std::int32_t, double>(rows, row, columns, body);
  } else {
    wide ? for_each_entry<std::int64_t, float>(rows, row, columns, body)
         : for_each_entry<std::int32_t, float>(rows, row, columns, body);
  }
}

inline float finite_float(double value, const SparseRowsView& rows, index_t row) {
  const auto rounded = static_cast<float>(value);
  CHECK(std::isfinite(rounded), rows.op, ": ", rows.name, ": expected finite values in the range of float32, got ",
        value, " in row ", rows.first + row);
  return rounded;
}

}  // namespace detail

// One row at a time: the entries of a column added up, in float64, without those that are then 0, in the order in which
// the columns come first.
class RowReader {
 public:
  explicit RowReader(index_t columns) : columns_(columns), seen_(columns) {}

  void read(const SparseRowsView& rows, index_t row) {
    sums_.clear();
    entries_.clear();
    ++stamp_;
    detail::for_each_entry(rows, row, columns_, [&](index_t column, double value) {
      Seen& seen = seen_[column];
      if (seen.stamp == stamp_) {
        sums_[seen.place].value += value;
      } else {
        seen = {stamp_, static_cast<std::uint32_t>(sums_.size())};
        sums_.push_back({static_cast<std::uint32_t>(column), value});
      }
    });
    for (const Sum& sum : sums_) {
      const float value = detail::finite_float(sum.value, rows, row);
      if (value != 0) entries_.push_back({sum.column, value});
    }
  }
  const std::vector<RowEntry>& entries() const { return entries_; }

 private:
  struct Seen {
    std::uint32_t stamp = 0;
    std::uint32_t place = 0;
  };
  struct Sum {
    std::uint32_t column;
    double value;
  };
  index_t columns_;
  std::uint32_t stamp_ = 0;
  std::vector<Seen> seen_;
  std::vector<Sum> sums_;
  std::vector<RowEntry> entries_;
};

}  // namespace subspan
