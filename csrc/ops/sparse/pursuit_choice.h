// The atom with the largest product with a residual: by the micro-kernel, whose tiles are compared as they come.
#pragma once
#include <limits>

#include "ops/sparse/pursuit_step.h"
#include "ops/sparse/signs.h"

namespace subspan {

// The largest of the numbers seen, and the column of the first of these; per lane, and at the end over the lanes.
template <class T>
class Largest {
 public:
  void see(Vec<T> values, Mask<T> columns) {
    const Mask<T> larger = values > most_;
    nan_ |= values != values;
    most_ = larger ? values : most_;
    column_ = larger ? columns : column_;
  }

  bool nan() const { return any<T>(nan_); }

  index_t column() const {
    T most = -std::numeric_limits<T>::infinity();
    index_t first = 0;
    for (index_t lane = 0; lane < kLanes<T>; ++lane) {
      const auto column = static_cast<index_t>(column_[lane]);
      if (most_[lane] < most || (most_[lane] == most && column >= first)) continue;
      most = most_[lane];
      first = column;
    }
    return first;
  }

 private:
  Vec<T> most_ = broadcast(-std::numeric_limits<T>::infinity());
  Mask<T> column_{}, nan_{};
};

// Atoms as the right operand of the micro-kernel.
template <class T>
class Atoms {
 public:
  Atoms(const TensorView& W, index_t item, int threads, Workspace& workspace)
      : rows_(rows_of<T>(W, item)), count_(W.size(-2)), length_(W.size(-1)) {
    const index_t width = panel_width<T>(count_);
    panels_ = {workspace.take<T>(panel_elements<T>(length_, count_)), length_, width};
    parallel_for(panel_count<T>(count_), threads, [&](index_t p) {
      const Panels<T> panel{panels_.panel(p), length_, width};
      pack_rows(rows_, p * width, std::min(width, count_ - p * width), 0, length_, panel);
    });
  }

  index_t count() const { return count_; }
  index_t length() const { return length_; }
  const Rows<T>& rows() const { return rows_; }
  const Panels<T>& panels() const { return panels_; }

  // finish(row, column, sums) for the tiles of the products of `count` columns of `left` with all atoms.
  template <class Finish>
  void multiply_all(const Panels<T>& left, index_t count, Finish&& finish) const {
    for (index_t p = 0; p < panel_count<T>(count_); ++p) multiply_panel(left, count, p, finish);
  }

  template <class Finish>
  void multiply_panel(const Panels<T>& left, index_t count, index_t p, Finish&& finish) const {
    const index_t column = p * panels_.width, columns = std::min(panels_.width, count_ - column);
    with_vectors<T>((columns + kLanes<T> - 1) / kLanes<T>, [&](auto vectors) {
      for (index_t row = 0; row < count; row += kTileRows) {
        Vec<T> sums[kTileRows][vectors.value];
        multiply_tile<vectors.value>(left.column(row), left.width, panels_.panel(p), panels_.width, length_, sums);
        finish(row, column, sums);
      }
    });
  }

 private:
  Rows<T> rows_;
  index_t count_, length_;
  Panels<T> panels_;
};

// The finish that keeps the largest product of every row.
template <class T>
class KeepLargest {
 public:
  KeepLargest(Largest<T>* rows, index_t columns, bool by_magnitude)
      : rows_(rows), columns_(columns), by_magnitude_(by_magnitude) {
    for (index_t lane = 0; lane < kLanes<T>; ++lane) lane_[lane] = static_cast<Bits<T>>(lane);
  }

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
    for (int i = 0; i < kTileRows; ++i) {
      for (int v = 0; v < Vectors; ++v) see(rows_[row + i], sums[i][v], column + v * kLanes<T>);
    }
  }

  void see(Largest<T>& largest, Vec<T> products, index_t column) const {
    if (by_magnitude_) products = magnitude<T>(products);
    const Mask<T> columns = lane_ + static_cast<Bits<T>>(column);
    if (column + kLanes<T> > columns_) {
      const Mask<T> exists = columns < static_cast<Bits<T>>(columns_);
      products = exists ? products : broadcast(-std::numeric_limits<T>::infinity());
    }
    largest.see(products, columns);
  }

 private:
  Largest<T>* rows_;
  index_t columns_;
  bool by_magnitude_;
  Mask<T> lane_;
};

}  // namespace subspan
