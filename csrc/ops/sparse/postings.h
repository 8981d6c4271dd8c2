// The entries of sparse rows sorted by column: for each column the rows that have it, and their values there. Rows are
// taken a window at a time, so narrow that the sums over a window's rows stay in the first-level cache and that a row
// is two bytes. Within a column entries keep their order, by row and within a row: what is summed along them is the
// same for any number of threads.
#pragma once
#include <algorithm>

#include "core/huge_pages.h"
#include "core/parallel.h"
#include "core/workspace.h"
#include "ops/sparse/sparse_operand.h"

namespace subspan {

constexpr index_t kWindowRows = 8192;                 // at most
constexpr index_t kWindowEntries = index_t{1} << 18;  // about: they are sorted within the second-level cache

// Numbers of the columns in the tables of the windows: the columns themselves, or, where those would be far more than
// the entries, ranks among the columns that occur.
class ColumnSlots {
 public:
  ColumnSlots(const SparseOperand& rows, index_t columns, index_t entries_of_window, Workspace& workspace)
      : count_(columns) {
    constexpr index_t kSmall = 65536;
    if (columns <= kSmall + 8 * entries_of_window) return;
    index_t* found = workspace.take<index_t>(rows.entries());
    index_t* end = found;
    for (index_t i = 0; i < rows.rows(); ++i) {
      const SparseOperand::Row row = rows.row(i);
      for (index_t e = 0; e < row.count; ++e) *end++ = rows.column(row, e);
    }
    std::sort(found, end);
    count_ = std::unique(found, end) - found;
    columns_ = found;
  }

  index_t count() const { return count_; }

  // `count()`, which has no entries, for a column that does not occur.
  index_t of(index_t column) const {
    if (!columns_) return column;
    const index_t* at = std::lower_bound(columns_, columns_ + count_, column);
    return at < columns_ + count_ && *at == column ? at - columns_ : count_;
  }

 private:
  index_t count_;
  const index_t* columns_ = nullptr;
};

template <class T>
class Postings {
 public:
  struct List {
    const std::uint16_t* rows;
    const T* values;
    index_t count;
  };

  Postings(const SparseOperand& rows, index_t columns, int threads, Workspace& workspace)
      : rows_(rows.rows()),
        width_(window_rows(rows)),
        first_(first_entries(rows, width_, workspace)),
        slots_(rows, columns, rows.entries() / std::max<index_t>(windows(), 1), workspace),
        begin_(workspace.take<std::uint32_t>(windows() * table())),
        row_(large<std::uint16_t>(rows.entries(), workspace)),
        value_(large<T>(rows.entries(), workspace)) {
    parallel_for(windows(), threads, [&](index_t window) { sort(rows, window); }, 1);
  }

  index_t rows() const { return rows_; }
  index_t windows() const { return (rows_ + width_ - 1) / width_; }
  index_t begin_of(index_t window) const { return window * width_; }
  index_t size_of(index_t window) const { return std::min(width_, rows_ - window * width_); }

  index_t slot(index_t column) const { return slots_.of(column); }

  List list(index_t window, index_t slot) const {
    const std::uint32_t* begin = begin_ + window * table() + slot;
    const index_t at = first_[window] + begin[0];
    return {row_ + at, value_ + at, static_cast<index_t>(begin[1] - begin[0])};
  }

 private:
  // A slot for what does not occur, and two more that the counting needs.
  index_t table() const { return slots_.count() + 3; }

  template <class E>
  static E* large(index_t count, Workspace& workspace) {
    E* memory = workspace.take<E>(count);
    const auto bytes = static_cast<std::size_t>(count) * sizeof(E);
    if (bytes >= kFreshBytes) wish_for_huge_pages(memory, bytes);
    return memory;
  }

  // As many rows as have fewer than 2^32 entries together, and about kWindowEntries.
  static index_t window_rows(const SparseOperand& rows) {
    index_t most = 1;
    for (index_t i = 0; i < rows.rows(); ++i) most = std::max(most, rows.row(i).count);
    constexpr index_t kMost = (index_t{1} << 32) - 1;
    const index_t usual = kWindowEntries * rows.rows() / std::max<index_t>(rows.entries(), 1);
    return std::clamp<index_t>(kMost / most, 1, std::clamp<index_t>(usual, 512, kWindowRows));
  }

  // Where the entries of each window begin among those of all.
  static index_t* first_entries(const SparseOperand& rows, index_t width, Workspace& workspace) {
    const index_t windows = (rows.rows() + width - 1) / width;
    index_t* first = workspace.take<index_t>(windows + 1);
    for (index_t w = 0; w < windows; ++w) first[w] = rows.row(w * width).first;
    first[windows] = rows.entries();
    return first;
  }

  void sort(const SparseOperand& rows, index_t window) {
    const index_t begin = begin_of(window), end = begin + size_of(window);
    std::uint32_t* start = begin_ + window * table();
    std::fill_n(start, table(), 0u);
    for (index_t i = begin; i < end; ++i) {
      const SparseOperand::Row row = rows.row(i);
      for (index_t e = 0; e < row.count; ++e) ++start[slot(rows.column(row, e)) + 2];
    }
    for (index_t slot = 2; slot < table(); ++slot) start[slot] += start[slot - 1];
    std::uint16_t* to_row = row_ + first_[window];
    T* to_value = value_ + first_[window];
    for (index_t i = begin; i < end; ++i) {
      const SparseOperand::Row row = rows.row(i);
      for (index_t e = 0; e < row.count; ++e) {
        const std::uint32_t at = start[slot(rows.column(row, e)) + 1]++;
        to_row[at] = static_cast<std::uint16_t>(i - begin);
        to_value[at] = rows.value<T>(row, e);
      }
    }
  }

  index_t rows_, width_;
  const index_t* first_;
  ColumnSlots slots_;
  std::uint32_t* begin_;
  std::uint16_t* row_;
  T* value_;
};

// body(e, list) for every entry e of a row, with the list of its column in a window. Lists are looked up some entries
// ahead: most are short, and lie anywhere.
template <class T, class Body>
void for_lists(const SparseOperand& rows, const SparseOperand::Row& row, const Postings<T>& postings, index_t window,
               Body&& body) {
  constexpr index_t kAhead = 64;
  typename Postings<T>::List lists[kAhead];
  for (index_t first = 0; first < row.count; first += kAhead) {
    const index_t count = std::min(kAhead, row.count - first);
    for (index_t e = 0; e < count; ++e) {
      lists[e] = postings.list(window, postings.slot(rows.column(row, first + e)));
      __builtin_prefetch(lists[e].rows);
      __builtin_prefetch(lists[e].values);
    }
    for (index_t e = 0; e < count; ++e) body(first + e, lists[e]);
  }
}

// body(item, threads) for every item: items side by side where they are as many as threads.
template <class Body>
void for_each_sparse_item(const SparseArrays& q, const SparseArrays& d, int threads, Body&& body) {
  const index_t items = q.items();
  // Reading an entry, sorting it and beginning with its list takes as long as some 16 multiply-adds.
  const double work = 16.0 * static_cast<double>(q.entries() + d.entries()) + static_cast<double>(q.rows() * d.rows());
  if (items >= threads) {
    parallel_for(items, useful_threads(static_cast<double>(items) * work, threads), [&](index_t i) { body(i, 1); });
  } else {
    for (index_t i = 0; i < items; ++i) body(i, useful_threads(work, threads));
  }
}

}  // namespace subspan
