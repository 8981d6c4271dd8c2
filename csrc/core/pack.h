// Step one of every op: bring rows of the caller's array into panels.
#pragma once
#include "core/dispatch.h"
#include "core/gemm.h"
#include "core/half.h"
#include "core/tensor_view.h"
#include "core/workspace.h"

namespace subspan {

// The rows of an (n, d) array as the micro-kernel wants them: of type T, optionally gathered through `order` and scaled
// row by row. Entries of another type, with a column stride, or scaled are converted on the way; others are read in
// place.
template <class T>
class Rows {
 public:
  Rows(const void* data, DType dtype, index_t row_step, index_t column_step)
      : data_(static_cast<const char*>(data)), row_step_(row_step), column_step_(column_step), dtype_(dtype) {}

  Rows gathered(const index_t* order) const {
    Rows rows = *this;
    rows.order_ = order;
    return rows;
  }
  Rows scaled(const T* scale) const {
    Rows rows = *this;
    rows.scale_ = scale;
    return rows;
  }

  bool in_place() const { return dtype_ == (sizeof(T) == 4 ? DType::f32 : DType::f64) && column_step_ == 1 && !scale_; }

  // Whether rows are read in place, each `row_step` entries after the one before.
  bool evenly_in_place() const { return in_place() && !order_; }
  index_t row_step() const { return row_step_; }

  // `count` neighbouring entries of one row: where they lie, or a converted copy in `scratch`.
  const T* read(index_t row, index_t column, index_t count, T* scratch) const {
    const index_t source = order_ ? order_[row] : row;
    const index_t offset = source * row_step_ + column * column_step_;
    if (in_place()) return reinterpret_cast<const T*>(data_) + offset;
    switch (dtype_) {
      case DType::f32: convert<float>(offset, count, scratch); break;
      case DType::f64: convert<double>(offset, count, scratch); break;
      case DType::bf16: convert<BFloat16>(offset, count, scratch); break;
      default: convert<Float16>(offset, count, scratch); break;
    }
    if (scale_) {
      for (index_t i = 0; i < count; ++i) scratch[i] *= scale_[row];
    }
    return scratch;
  }

 private:
  template <class Stored>
  void convert(index_t offset, index_t count, T* out) const {
    const Stored* from = reinterpret_cast<const Stored*>(data_) + offset;
    if (column_step_ == 1) {
      for (index_t i = 0; i < count; ++i) out[i] = static_cast<T>(from[i]);
    } else if (column_step_ == 0 && count > 0) {  // as in the gradient of a sum
      std::fill_n(out, count, static_cast<T>(*from));
    } else {
      for (index_t i = 0; i < count; ++i) out[i] = static_cast<T>(from[i * column_step_]);
    }
  }

  const char* data_;
  index_t row_step_, column_step_;
  DType dtype_;
  const index_t* order_ = nullptr;
  const T* scale_ = nullptr;
};

// to[k][c] = rows[first_row + k][first_column + c]: columns of the array are columns of the panels. Columns beyond
// `columns` up to a whole vector become zero.
template <class T>
void pack_columns(const Rows<T>& rows, index_t first_row, index_t row_count, index_t first_column, index_t columns,
                  const Panels<T>& to) {
  constexpr index_t at_once = 16;  // panels filled from one read of a row: pieces of rows are read half as fast
  T scratch[at_once * kPanelWidth<T>];
  for (index_t c0 = 0; c0 < columns; c0 += at_once * to.width) {
    const index_t c1 = std::min(columns, c0 + at_once * to.width);
    for (index_t k = 0; k < row_count; ++k) {
      const T* in = rows.read(first_row + k, first_column + c0, c1 - c0, scratch);
      for (index_t c = c0; c < c1; c += to.width) {
        const index_t end = std::min(c1, c + to.width);
        T* out = to.at(k, c) - c;
        index_t i = c;
        for (; i + kLanes<T> <= end; i += kLanes<T>) store(out + i, load(in + i - c0));
        if (i < end) store(out + i, load_partial(in + i - c0, end - i));
      }
    }
  }
}

// to[k][r] = rows[first_row + r][first_column + k]: rows of the array are columns of the panels (a transposed copy).
// Rows beyond `row_count` up to a whole vector, and to a whole row tile, become zero.
template <class T>
void pack_rows(const Rows<T>& rows, index_t first_row, index_t row_count, index_t first_column, index_t column_count,
               const Panels<T>& to) {
  constexpr index_t lanes = kLanes<T>;
  constexpr index_t chunk = 256;
  T scratch[lanes][chunk];
  for (index_t p = 0; p * to.width < row_count; ++p) {
    for (index_t r = p * to.width;
         r < std::min((p + 1) * to.width, round_up(row_count, std::max<index_t>(lanes, kTileRows))); r += lanes) {
      const index_t present = std::clamp<index_t>(row_count - r, 0, lanes);
      for (index_t k0 = 0; k0 < column_count; k0 += chunk) {
        const index_t depth = std::min(chunk, column_count - k0);
        const T* in[lanes];
        for (index_t i = 0; i < present; ++i) {
          in[i] = rows.read(first_row + r + i, first_column + k0, depth, scratch[i]);
        }
        T* out = to.column(r) + k0 * to.width;
        index_t k = 0;
        for (; k + lanes <= depth; k += lanes) {
          Vec<T> square[lanes];
#pragma GCC unroll 16
          for (index_t i = 0; i < lanes; ++i) square[i] = i < present ? load(in[i] + k) : Vec<T>{};
          transpose_square<T>(square);
#pragma GCC unroll 16
          for (index_t i = 0; i < lanes; ++i) store(out + (k + i) * to.width, square[i]);
        }
        for (; k < depth; ++k) {
          for (index_t i = 0; i < lanes; ++i) out[k * to.width + i] = i < present ? in[i][k] : T(0);
        }
      }
    }
  }
}

}  // namespace subspan
