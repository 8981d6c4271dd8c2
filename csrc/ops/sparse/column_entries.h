// The entries of sparse rows, sorted by their column: by counting, so that those of one column stay in the order of the
// rows. The order is the same for any number of threads.
#pragma once
#include "core/parallel.h"
#include "ops/sparse/row_entries.h"

namespace subspan {

template <class T>
struct ColumnEntries {
  index_t columns = 0;
  index_t* starts = nullptr;  // of every column, and behind the last
  std::int32_t* rows = nullptr;
  index_t* places = nullptr;  // number of the entry, row by row
  T* values = nullptr;

  index_t count(index_t column) const { return starts[column + 1] - starts[column]; }
};

// counts[b][m + 1]: how many entries of column m the rows of part b have.
template <class T>
void count_columns(const RowEntries<T>& S, index_t parts, index_t* counts, int threads) {
  const index_t columns = S.columns();
  parallel_for(
      parts, threads,
      [&](index_t part) {
        index_t* own = counts + part * columns;
        std::fill_n(own, columns, index_t{0});
        index_t chunk[256];
        for (index_t row = part * S.rows() / parts; row < (part + 1) * S.rows() / parts; ++row) {
          const index_t count = S.count(row);
          for (index_t first = 0; first < count; first += 256) {
            const index_t some = std::min<index_t>(256, count - first);
            S.read_columns(row, first, some, chunk);
            for (index_t e = 0; e < some; ++e) ++own[chunk[e]];
          }
        }
      },
      1);
}

template <class T>
ColumnEntries<T> sort_by_column(const RowEntries<T>& S, Workspace& workspace, int threads) {
  const index_t columns = S.columns(), total = S.entries();
  constexpr index_t least = 1 << 14;  // entries of a part
  const index_t parts = std::clamp<index_t>(total / least, 1, std::max(threads, 1));
  ColumnEntries<T> sorted;
  sorted.columns = columns;
  sorted.starts = workspace.take<index_t>(columns + 1);
  sorted.rows = workspace.take<std::int32_t>(total);
  sorted.places = workspace.take<index_t>(total);
  sorted.values = workspace.take<T>(total);
  index_t* next = workspace.take<index_t>(parts * columns);
  count_columns(S, parts, next, threads);
  index_t before = 0;
  for (index_t column = 0; column < columns; ++column) {
    sorted.starts[column] = before;
    for (index_t part = 0; part < parts; ++part) {
      const index_t own = next[part * columns + column];
      next[part * columns + column] = before;
      before += own;
    }
  }
  sorted.starts[columns] = before;
  parallel_for(
      parts, threads,
      [&](index_t part) {
        index_t* to = next + part * columns;
        index_t chunk[256];
        T scratch[256];
        for (index_t row = part * S.rows() / parts; row < (part + 1) * S.rows() / parts; ++row) {
          const index_t count = S.count(row), begin = S.begin(row);
          for (index_t first = 0; first < count; first += 256) {
            const index_t some = std::min<index_t>(256, count - first);
            S.read_columns(row, first, some, chunk);
            const T* values = S.read_values(row, first, some, scratch);
            for (index_t e = 0; e < some; ++e) {
              const index_t at = to[chunk[e]]++;
              sorted.rows[at] = static_cast<std::int32_t>(row);
              sorted.places[at] = begin + first + e;
              sorted.values[at] = values[e];
            }
          }
        }
      },
      1);
  return sorted;
}

}  // namespace subspan
