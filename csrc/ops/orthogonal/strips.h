// A matrix of any layout, read and written in strips of columns that lie in panels.
#pragma once
#include "core/batch.h"
#include "core/pack.h"

namespace subspan {

struct MatrixView {
  char* data;
  DType dtype;
  index_t rows, columns, row_step, column_step;

  // `swapped`: the transpose of what is stored.
  MatrixView(const TensorView& view, index_t item, bool swapped)
      : data(static_cast<char*>(const_cast<void*>(batch_item(view, 2, item)))),
        dtype(view.dtype),
        rows(view.size(swapped ? -1 : -2)),
        columns(view.size(swapped ? -2 : -1)),
        row_step(view.step(swapped ? -1 : -2)),
        column_step(view.step(swapped ? -2 : -1)) {}

  MatrixView(char* data, DType dtype, index_t rows, index_t columns, index_t row_step, index_t column_step)
      : data(data), dtype(dtype), rows(rows), columns(columns), row_step(row_step), column_step(column_step) {}

  template <class T>
  bool native() const {
    return dtype == (sizeof(T) == 4 ? DType::f32 : DType::f64);
  }
  template <class T>
  T* at(index_t row, index_t column) const {
    return reinterpret_cast<T*>(data) + row * row_step + column * column_step;
  }
  template <class T>
  Rows<T> by_rows() const {
    return Rows<T>(data, dtype, row_step, column_step);
  }
  template <class T>
  Rows<T> by_columns() const {
    return Rows<T>(data, dtype, column_step, row_step);
  }
  bool transposed() const { return row_step == 1 && column_step != 1; }
};

template <class T>
inline void copy_entries(const T* from, index_t count, T* to) {
  constexpr index_t half = kLanes<T> / 2;
  index_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
  if (count - i >= half) {
    std::memcpy(to + i, from + i, half * sizeof(T));
    i += half;
  }
  for (; i < count; ++i) to[i] = from[i];
}

// A half vector and zeros, without a way through memory, where half a vector would wait for the other half.
template <class T>
inline Vec<T> load_half(const T* from) {
  alignas(kVectorBytes) static constexpr T zeros[kLanes<T> / 2] = {};
  return load_halves(from, zeros);
}

// Up to a whole vector, with zeros.
template <class T>
inline void copy_padded(const T* from, index_t count, T* to) {
  constexpr index_t half = kLanes<T> / 2;
  index_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(to + i, load(from + i));
  if (count - i == half) {
    store(to + i, load_half(from + i));
  } else if (i < count) {
    store(to + i, load_partial(from + i, count - i));
  }
}

// Rows of the usual lengths in loops without a branch.
template <class T>
inline void copy_rows(const T* from, index_t step, index_t rows, index_t count, T* to, index_t width) {
  constexpr index_t lanes = kLanes<T>, half = lanes / 2;
  const index_t whole = count / lanes;
  if (whole > 0) {
    with_vectors<T>(whole, [&](auto vectors) {
      for (index_t i = 0; i < rows; ++i) {
        for (int v = 0; v < vectors.value; ++v) store(to + i * width + v * lanes, load(from + i * step + v * lanes));
      }
    });
  }
  const index_t rest = count - whole * lanes;
  from += whole * lanes;
  to += whole * lanes;
  if (rest == half) {
    for (index_t i = 0; i < rows; ++i) store(to + i * width, load_half(from + i * step));
  } else if (rest > 0) {
    for (index_t i = 0; i < rows; ++i) copy_padded(from + i * step, rest, to + i * width);
  }
}

// to[i * width + c] = matrix(row + i, first + c) for i < rows, c < count; zeros follow up to a whole vector or, with
// `clear`, up to the width, which then may be less than a vector.
template <class T>
void load_strip(const MatrixView& from, index_t row, index_t rows, index_t first, index_t count, T* to, index_t width,
                bool clear) {
  constexpr index_t unit = std::max<index_t>(kLanes<T>, kTileRows);
  if (clear && count < width) std::fill_n(to, rows * width, T(0));
  if (from.transposed() && width % unit == 0) {
    pack_rows(from.by_columns<T>(), first, count, row, rows, Panels<T>{to, rows, width});
    return;
  }
  if (!clear && from.native<T>() && from.column_step == 1) {
    copy_rows(from.at<T>(row, first), from.row_step, rows, count, to, width);
    return;
  }
  const Rows<T> in = from.by_rows<T>();
  T scratch[std::max<index_t>(kPanelWidth<T>, 32)];
  for (index_t i = 0; i < rows; ++i, to += width) {
    const T* entries = in.read(row + i, first, count, scratch);
    if (clear) {
      copy_entries(entries, count, to);
    } else {
      copy_padded(entries, count, to);
    }
  }
}

// The inverse, of a matrix of type T.
template <class T>
void store_strip(const T* from, index_t width, const MatrixView& to, index_t row, index_t rows, index_t first,
                 index_t count) {
  constexpr index_t lanes = kLanes<T>;
  if (to.column_step == 1) {
    for (index_t i = 0; i < rows; ++i) {
      T* target = to.at<T>(row + i, first);
      if (count == lanes / 2) {
        std::memcpy(target, from + i * width, lanes / 2 * sizeof(T));
      } else {
        copy_entries(from + i * width, count, target);
      }
    }
    return;
  }
  for (index_t i0 = 0; i0 < rows; i0 += lanes) {
    for (index_t c0 = 0; c0 < count; c0 += lanes) {
      const index_t present = std::min(lanes, count - c0);
      if (i0 + lanes <= rows && c0 + lanes <= width && to.row_step == 1) {
        Vec<T> square[lanes];
        for (index_t i = 0; i < lanes; ++i) square[i] = load(from + (i0 + i) * width + c0);
        transpose_square<T>(square);
        for (index_t c = 0; c < present; ++c) store(to.at<T>(row + i0, first + c0 + c), square[c]);
      } else {
        for (index_t i = i0; i < std::min(rows, i0 + lanes); ++i) {
          for (index_t c = c0; c < c0 + present; ++c) *to.at<T>(row + i, first + c) = from[i * width + c];
        }
      }
    }
  }
}

}  // namespace subspan
