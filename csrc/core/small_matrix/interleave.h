// Between matrices in the caller's arrays and matrices side by side in SIMD lanes.
#pragma once
#include "core/batch.h"
#include "core/pack.h"
#include "core/workspace.h"

namespace subspan {

// Items first ... first + kLanes - 1 of a batch of matrices, one per lane; lanes beyond the last repeat it.
template <class T>
struct LaneGroup {
  index_t first, present;

  LaneGroup(index_t group, index_t items)
      : first(group * kLanes<T>), present(std::min<index_t>(kLanes<T>, items - first)) {}
  index_t item(index_t lane) const { return first + std::min(lane, present - 1); }
};

template <class T>
inline index_t lane_groups(index_t items) {
  return (items + kLanes<T> - 1) / kLanes<T>;
}

// to[r * row_step + c * column_step] = entry (r, c) of every lane's matrix.
template <class T>
void interleave(const TensorView& matrices, const LaneGroup<T>& group, Vec<T>* to, index_t row_step,
                index_t column_step) {
  constexpr index_t lanes = kLanes<T>;
  index_t rows = matrices.size(-2), columns = matrices.size(-1);
  index_t from_row = matrices.step(-2), from_column = matrices.step(-1);
  if (from_column != 1 && from_row == 1) {  // runs of neighbours are columns
    std::swap(rows, columns);
    std::swap(from_row, from_column);
    std::swap(row_step, column_step);
  }
  T scratch[lanes][lanes] = {};
  const void* data[lanes];
  for (index_t lane = 0; lane < lanes; ++lane) data[lane] = batch_item(matrices, 2, group.item(lane));
  const bool readable = Rows<T>(data[0], matrices.dtype, from_row, from_column).in_place();
  if (readable && from_row == columns) {  // one run, whose length is seldom a multiple of the lanes
    index_t r = 0, c = 0;
    for (index_t e = 0; e < rows * columns; e += lanes) {
      const index_t count = std::min(lanes, rows * columns - e);
      Vec<T> square[lanes];
      for (index_t lane = 0; lane < lanes; ++lane) {
        const T* in = static_cast<const T*>(data[lane]) + e;
        square[lane] = count == lanes ? load(in) : load_partial(in, count);
      }
      transpose_square<T>(square);
      for (index_t i = 0; i < count; ++i) {
        to[r * row_step + c * column_step] = square[i];
        if (++c == columns) c = 0, ++r;
      }
    }
    return;
  }
  for (index_t r = 0; r < rows; ++r) {
    for (index_t c = 0; c < columns; c += lanes) {
      const index_t count = std::min(lanes, columns - c);
      Vec<T> square[lanes];
      for (index_t lane = 0; lane < lanes; ++lane) {
        if (readable && count == lanes) {
          square[lane] = load(static_cast<const T*>(data[lane]) + r * from_row + c);
          continue;
        }
        const T* in = Rows<T>(data[lane], matrices.dtype, from_row, from_column).read(r, c, count, scratch[lane]);
        square[lane] = load_partial(in, count);
      }
      transpose_square<T>(square);
      for (index_t i = 0; i < count; ++i) to[r * row_step + (c + i) * column_step] = square[i];
    }
  }
}

// The matrices of all lanes, each packed. They are an odd number of vectors apart.
template <class T>
struct LaneItems {
  const T* data;
  index_t apart;
  const T* operator[](index_t lane) const { return data + lane * apart; }
};

// Entry (r, c) of every lane's matrix is from[r * row_step + c * column_step]. Each is to be copied as a whole to where
// it belongs: rows shorter than a vector would be written there entry by entry.
template <class T>
LaneItems<T> separate(const Vec<T>* from, index_t row_step, index_t column_step, index_t rows, index_t columns,
                      Workspace& workspace) {
  constexpr index_t lanes = kLanes<T>;
  const index_t vectors = (rows * columns + lanes - 1) / lanes + 1, apart = (vectors | 1) * lanes;
  T* items = workspace.take<T>(lanes * apart);
  for (index_t r = 0; r < rows; ++r) {
    for (index_t c = 0; c < columns; c += lanes) {
      const index_t count = std::min(lanes, columns - c);
      Vec<T> square[lanes];
#pragma GCC unroll 16
      for (index_t i = 0; i < lanes; ++i) square[i] = i < count ? from[r * row_step + (c + i) * column_step] : Vec<T>{};
      transpose_square<T>(square);
      T* to = items + r * columns + c;  // what is too much goes where the next row will lie
#pragma GCC unroll 16
      for (index_t lane = 0; lane < lanes; ++lane) store(to + lane * apart, square[lane]);
    }
  }
  return {items, apart};
}

// out (items, rows, columns), packed, from entries as above.
template <class T>
void deinterleave(const Vec<T>* from, index_t row_step, index_t column_step, const LaneGroup<T>& group, index_t rows,
                  index_t columns, T* out) {
  Workspace workspace;
  const LaneItems<T> items = separate<T>(from, row_step, column_step, rows, columns, workspace);
  for (index_t lane = 0; lane < group.present; ++lane)
    std::copy_n(items[lane], rows * columns, out + (group.first + lane) * rows * columns);
}

// Divides every lane's matrix of `count` entries by the power of two that brings its largest entry to 1 ... 2, so that
// no square of an entry overflows. Gives that power; a lane with an entry that is not finite becomes NaN altogether.
template <class T>
Vec<T> scale_to_one(Vec<T>* entries, index_t count) {
  using Bits = Mask<T>;
  Vec<T> largest{}, poison{};
  for (index_t i = 0; i < count; ++i) {
    const Vec<T> size = entries[i] < 0 ? -entries[i] : entries[i];
    largest = size > largest ? size : largest;
    poison += entries[i] * 0;
  }
  constexpr T kSmallest = std::numeric_limits<T>::min();
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const Vec<T> bounded = largest < kSmallest ? broadcast(kSmallest) : largest;
  Bits bits;
  std::memcpy(&bits, &bounded, sizeof bits);
  Bits exponent;
  const Vec<T> infinity = broadcast(kInfinity);
  std::memcpy(&exponent, &infinity, sizeof exponent);
  bits &= exponent;
  Vec<T> power;
  std::memcpy(&power, &bits, sizeof power);
  const Vec<T> factor = 1 / power + poison;
  for (index_t i = 0; i < count; ++i) entries[i] *= factor;
  return power;
}

}  // namespace subspan
