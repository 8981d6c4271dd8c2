// Products with the transpose of sparse rows, column by column: column m gathers the rows of X of its entries.
//   sums_m = sum_i S_im X_i        products_im = X_i . Y_m, of every entry
// Sums of all columns; of those that have entries, one after the other; or added to what `sums` holds.
#pragma once
#include <vector>

#include "core/huge_pages.h"
#include "ops/sparse/column_entries.h"
#include "ops/sparse/gathered_rows.h"

namespace subspan {

enum class SumPlaces { all, used, added };

template <class T>
struct ByColumns {
  const SparseView& S;
  const TensorView& X;
  const TensorView* Y;
  const TensorView& sums;  // of type T, or a narrower one that they are rounded to
  T* products;
  SumPlaces places;
  index_t used;  // columns that have entries, where their sums come one after the other
  const char* op;
};

namespace detail {

// Neighbouring columns; or of one with so many entries that several threads share it, some entries of its sum or the
// products of some of its entries.
struct ColumnTask {
  index_t first, last;
  index_t begin, end;               // entries of the sums
  index_t first_entry, last_entry;  // within the column
  bool sums, products;
};

template <class T, class Stored, bool Dots>
class ColumnProducts {
 public:
  ColumnProducts(const ByColumns<T>& call, index_t item, RowTable<Stored> table, const ColumnEntries<T>& sorted)
      : sorted_(sorted), table_(table), width_(call.X.size(-1)), places_(call.places) {
    narrow_ = element_size(call.sums.dtype) < static_cast<index_t>(sizeof(T));
    type_ = call.sums.dtype;
    sums_ = static_cast<char*>(call.sums.data) + item * sorted.columns * width_ * element_size(type_);
    if (Dots) {
      products_ = call.products + item * sorted.starts[sorted.columns];
      own_ = Rows<T>(batch_item(*call.Y, 2, item), call.Y->dtype, call.Y->step(-2), call.Y->step(-1));
    }
    const auto bytes = static_cast<std::size_t>(sorted.columns * width_) * sizeof(T);
    const bool aligned = !narrow_ && entries_to_alignment(wide_row(0)) == 0 && width_ % kLanes<T> == 0;
    streams_ = aligned && places_ == SumPlaces::all && bytes >= kFreshBytes && !has_no_pages(sums_, bytes);
    if (places_ == SumPlaces::used) number_used();
  }

  // Of equal work, at least some for each thread. A sum does not depend on how they are cut.
  std::vector<ColumnTask> tasks(int threads) const {
    const index_t total = sorted_.starts[sorted_.columns] + sorted_.columns;
    const index_t share = threads == 1 ? total : std::max<index_t>(64, total / (16 * threads));
    std::vector<ColumnTask> list;
    index_t first = 0, work = 0;
    const auto close = [&](index_t last) {
      if (first < last) list.push_back({first, last, 0, width_, 0, sorted_.starts[sorted_.columns], true, Dots});
      first = last, work = 0;
    };
    for (index_t m = 0; m < sorted_.columns; ++m) {
      if (sorted_.count(m) > 4 * share) {
        close(m);
        split(m, share, list);
        first = m + 1;
        continue;
      }
      work += sorted_.count(m) + 1;
      if (work >= share) close(m + 1);
    }
    close(sorted_.columns);
    return far_apart(list, threads);
  }

  void run(const ColumnTask& task) const {
    Workspace workspace;
    const index_t padded = round_up(width_, kLanes<T>);
    Buffers buffers{workspace.take<T>(padded), workspace.take<T>(padded), workspace.take<T>(padded)};
    for (index_t m = task.first; m < task.last; ++m) {
      const index_t count = sorted_.count(m);
      if (task.sums && task.products == Dots) {
        column<true, Dots>(m, task, task.first_entry, std::min(task.last_entry, count), buffers);
      } else if constexpr (Dots) {
        task.sums ? column<true, false>(m, task, 0, count, buffers)
                  : column<false, true>(m, task, task.first_entry, std::min(task.last_entry, count), buffers);
      }
    }
    if (streams_) end_stream();
  }

 private:
  struct Buffers {
    T* part;
    T* total;
    T* own;
  };

  // Tasks that run at the same time write to places far from each other: two threads that come upon a fresh huge page
  // both fill it with zeros.
  static std::vector<ColumnTask> far_apart(const std::vector<ColumnTask>& list, int threads) {
    const auto parts = static_cast<std::size_t>(threads), count = list.size();
    std::vector<ColumnTask> order;
    order.reserve(count);
    for (std::size_t i = 0; order.size() < count; ++i) {
      for (std::size_t part = 0; part < parts; ++part) {
        const std::size_t at = part * count / parts + i;
        if (at < (part + 1) * count / parts) order.push_back(list[at]);
      }
    }
    return order;
  }

  void number_used() {
    numbers_.resize(static_cast<std::size_t>(sorted_.columns));
    index_t number = 0;
    for (index_t m = 0; m < sorted_.columns; ++m) {
      numbers_[static_cast<std::size_t>(m)] = number;
      number += sorted_.count(m) > 0;
    }
  }

  void split(index_t m, index_t share, std::vector<ColumnTask>& list) const {
    const index_t slice = 8 * kLanes<T>;
    for (index_t d = 0; d < width_; d += slice) {
      list.push_back({m, m + 1, d, std::min(width_, d + slice), 0, sorted_.count(m), true, false});
    }
    if (Dots) {
      const index_t some = round_up(share, kChunk);
      for (index_t e = 0; e < sorted_.count(m); e += some) {
        list.push_back({m, m + 1, 0, width_, e, e + some, false, true});
      }
    }
  }

  template <bool OwnSums, bool OwnDots>
  void column(index_t m, const ColumnTask& task, index_t from, index_t until, const Buffers& buffers) const {
    if (OwnSums && until == 0) {
      if (places_ == SumPlaces::all) write_zeros(m, task.begin, task.end);
      return;
    }
    const index_t row = places_ == SumPlaces::used ? numbers_[static_cast<std::size_t>(m)] : m;
    T* to = !OwnSums ? nullptr : narrow_ ? buffers.total : wide_row(row);
    const T* base = nullptr;
    if (OwnSums && places_ == SumPlaces::added) {
      base = to;
      if (narrow_) with_narrow_row(row, [&](const auto* from) { widen(from, task.begin, task.end, to); });
    }
    const T* y = OwnDots && from < until ? own_.read(m, 0, width_, buffers.own) : nullptr;
    const index_t start = sorted_.starts[m];
    Gathered<T, Stored> chunk;
    T products[kChunk];
    for (index_t first = from; first < until; first += kChunk) {
      chunk.count = std::min(kChunk, until - first);
      const index_t at = start + first;
      for (index_t e = 0; e < chunk.count; ++e) chunk.rows[e] = table_.row(sorted_.rows[at + e]);
      if (OwnSums) chunk.weights = sorted_.values + at;
      const bool last = first + kChunk >= until;
      const SumTarget<T> sum{base, last ? to : buffers.total, buffers.part, last && streams_};
      gather_chunk<T, Stored, OwnSums, OwnDots>(chunk, y, task.begin, task.end, sum, products);
      base = buffers.total;
      for (index_t e = 0; OwnDots && e < chunk.count; ++e) products_[sorted_.places[at + e]] = products[e];
    }
    if (OwnSums && narrow_) with_narrow_row(row, [&](auto* out) { narrow(to, task.begin, task.end, out); });
  }

  T* wide_row(index_t row) const { return reinterpret_cast<T*>(sums_) + row * width_; }

  template <class Body>
  void with_narrow_row(index_t row, Body&& body) const {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (type_ == DType::bf16) return body(reinterpret_cast<BFloat16*>(sums_) + row * width_);
      body(reinterpret_cast<Float16*>(sums_) + row * width_);
    }
  }
  template <class Half>
  static void widen(const Half* from, index_t begin, index_t end, T* to) {
    for (index_t d = begin; d < end; ++d) to[d] = static_cast<T>(from[d]);
  }
  template <class Half>
  static void narrow(const T* from, index_t begin, index_t end, Half* to) {
    for (index_t d = begin; d < end; ++d) round_to(to[d], from[d]);
  }

  void write_zeros(index_t row, index_t begin, index_t end) const {
    if (narrow_)
      return with_narrow_row(row,
                             [&](auto* out) { std::fill(out + begin, out + end, std::decay_t<decltype(*out)>{}); });
    write_base<T>(begin, end, {nullptr, wide_row(row), nullptr, streams_});
  }

  const ColumnEntries<T>& sorted_;
  RowTable<Stored> table_;
  index_t width_;
  SumPlaces places_;
  char* sums_;
  DType type_;
  bool narrow_;
  T* products_ = nullptr;
  Rows<T> own_{nullptr, DType::f32, 0, 0};
  bool streams_ = false;
  std::vector<index_t> numbers_;
};

}  // namespace detail

template <class T, bool Dots>
void products_by_columns(const ByColumns<T>& call, int threads) {
  const index_t items = call.S.items(), width = call.X.size(-1);
  const double work = static_cast<double>(2 * call.S.entries() + call.S.columns) * static_cast<double>(width);
  const int used = useful_threads(work, threads);
  for (index_t item = 0; item < items; ++item) {
    Workspace workspace;
    const RowEntries<T> entries(call.S, item, call.op);
    const auto sorted = sort_by_column(entries, workspace, used);
    if (call.places == SumPlaces::used) {
      index_t filled = 0;
      for (index_t m = 0; m < sorted.columns; ++m) filled += sorted.count(m) > 0;
      CHECK(filled == call.used, call.op, ": S: expected ", call.used, " columns with entries, got ", filled);
    }
    with_row_table<T>(call.X, item, used, workspace, [&](auto table) {
      using Stored = std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>;
      const detail::ColumnProducts<T, Stored, Dots> products(call, item, table, sorted);
      const auto tasks = products.tasks(used);
      parallel_for(
          static_cast<index_t>(tasks.size()), used,
          [&](index_t t) { products.run(tasks[static_cast<std::size_t>(t)]); }, 1);
    });
  }
}

}  // namespace subspan
