// Products with sparse rows that are computed row by row: row i gathers the rows of X that its entries name.
//   sums_i = bias + sum_m S_im X_m        products_im = X_m . Y_i, of every entry
#pragma once
#include "core/parallel.h"
#include "ops/sparse/gathered_rows.h"
#include "ops/sparse/row_entries.h"

namespace subspan {

template <class T>
struct ByRows {
  const SparseView& S;
  const TensorView& X;
  const TensorView* Y;
  const TensorView* bias;
  T* sums;
  T* products;
  const char* op;
};

namespace detail {

template <class T, class Stored, bool Sums, bool Dots>
class RowProducts {
 public:
  RowProducts(const ByRows<T>& call, index_t item, RowTable<Stored> table)
      : entries_(call.S, item, call.op), table_(table), width_(call.X.size(-1)) {
    if (Sums) sums_ = call.sums + item * entries_.rows() * width_;
    if (Dots) {
      products_ = call.products + item * entries_.entries();
      own_ = Rows<T>(batch_item(*call.Y, 2, item), call.Y->dtype, call.Y->step(-2), call.Y->step(-1));
    }
    if (call.bias) bias_ = Rows<T>(batch_item(*call.bias, 1, item), call.bias->dtype, 0, call.bias->step(-1));
    has_bias_ = call.bias != nullptr;
  }

  index_t rows() const { return entries_.rows(); }

  void run(index_t first_row, index_t last_row) const {
    Workspace workspace;
    const index_t padded = round_up(width_, kLanes<T>);
    T* part = workspace.take<T>(padded);
    T* own = workspace.take<T>(padded);
    T* bias = workspace.take<T>(padded);
    const T* base = has_bias_ ? bias_.read(0, 0, width_, bias) : nullptr;
    T scratch[kChunk];
    Gathered<T, Stored> chunk;
    for (index_t row = first_row; row < last_row; ++row) {
      const T* y = Dots ? own_.read(row, 0, width_, own) : nullptr;
      T* to = Sums ? sums_ + row * width_ : nullptr;
      const index_t count = entries_.count(row);
      if (Sums && count == 0) write_base<T>(0, width_, {base, to, part, false});
      for (index_t first = 0; first < count; first += kChunk) {
        chunk.count = std::min(kChunk, count - first);
        entries_.read_columns(row, first, chunk.count, chunk.places);
        if (Sums) chunk.weights = entries_.read_values(row, first, chunk.count, scratch);
        for (index_t e = 0; e < chunk.count; ++e) chunk.rows[e] = table_.row(chunk.places[e]);
        T* products = Dots ? products_ + entries_.begin(row) + first : nullptr;
        gather_chunk<T, Stored, Sums, Dots>(chunk, y, 0, width_, {first == 0 ? base : to, to, part, false}, products);
      }
    }
  }

 private:
  RowEntries<T> entries_;
  RowTable<Stored> table_;
  index_t width_;
  T* sums_ = nullptr;
  T* products_ = nullptr;
  Rows<T> own_{nullptr, DType::f32, 0, 0}, bias_{nullptr, DType::f32, 0, 0};
  bool has_bias_;
};

}  // namespace detail

template <class T, bool Sums, bool Dots>
void products_by_rows(const ByRows<T>& call, int threads) {
  const index_t items = call.S.items(), rows = call.S.rows(), width = call.X.size(-1);
  const double work = 2.0 * static_cast<double>(call.S.entries()) * static_cast<double>(width);
  for (index_t item = 0; item < items; ++item) {
    Workspace workspace;
    const int used = useful_threads(work + static_cast<double>(rows * width), threads);
    with_row_table<T>(call.X, item, used, workspace, [&](auto table) {
      using Stored = std::remove_const_t<std::remove_pointer_t<decltype(table.data)>>;
      const detail::RowProducts<T, Stored, Sums, Dots> products(call, item, table);
      constexpr index_t block = 8;  // rows
      parallel_for((rows + block - 1) / block, used,
                   [&](index_t b) { products.run(b * block, std::min(rows, (b + 1) * block)); });
    });
  }
}

}  // namespace subspan
