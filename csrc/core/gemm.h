// The micro-kernel and the one layout it works on.
//
// Panels: a matrix X of `depth` rows is kept as panels of `width` columns, panel p being a dense depth x width block
// that holds columns p*width ... In that form a matrix is the right operand of a product (a vector load takes
// neighbouring columns of one row) and, transposed, its left operand (a broadcast takes one entry): the micro-kernel
// computes tiles of X^T Y from two matrices in the same layout. Gram matrices, Cholesky updates, triangular solves and
// gradients are all such products, so nothing is ever packed twice.
#pragma once
#include <algorithm>

#include "core/parallel.h"
#include "core/simd.h"

namespace subspan {

// Tile of kTileRows x (kTileVectors * kLanes): as many accumulators as leave a few registers for the operands.
#if defined(__AVX512F__)
constexpr int kTileRows = 8;
template <class T>
constexpr int kTileVectors = 3;
#else
constexpr int kTileRows = 4;
template <class T>
constexpr int kTileVectors = kLanes<T> < kTileRows ? 2 : 3;  // panels must hold whole row tiles
#endif

template <class T>
constexpr int kPanelWidth = kTileVectors<T> * kLanes<T>;
static_assert(kPanelWidth<float> % kTileRows == 0 && kPanelWidth<double> % kTileRows == 0, "panels of whole tiles");

constexpr index_t round_up(index_t value, index_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class T>
struct Panels {
  T* data = nullptr;
  index_t depth = 0;  // rows of every panel
  index_t width = kPanelWidth<T>;

  T* panel(index_t p) const { return data + p * depth * width; }
  // Column `column` as a left operand: its entries are `width` apart.
  T* column(index_t column) const { return panel(column / width) + column % width; }
  T* at(index_t row, index_t column) const { return this->column(column) + row * width; }
};

// A narrow matrix gets narrow panels, so that its rows stay close together. So does one that fills panels of two
// vectors but would leave a single vector after those of three: tiles of one spend more on loads than on arithmetic.
// Where there are more than `most`, that one is a small part.
template <class T>
index_t panel_width(index_t columns) {
  constexpr index_t unit = std::max<index_t>(kLanes<T>, kTileRows), most = 16;
  const index_t units = (columns + unit - 1) / unit;
  if (kPanelWidth<T> == 3 * unit && units > 3 && units <= most && units % 3 == 1 && units % 2 == 0) return 2 * unit;
  return std::clamp<index_t>(units * unit, unit, kPanelWidth<T>);
}
template <class T>
index_t panel_count(index_t columns) {
  return (columns + panel_width<T>(columns) - 1) / panel_width<T>(columns);
}
template <class T>
index_t panel_elements(index_t depth, index_t columns) {
  return panel_count<T>(columns) * panel_width<T>(columns) * depth;
}

// sums[i][v] += sum_k left[k][i] * right[k][lanes of v]; rows are `left_step` and `right_step` apart, entries of a left
// row `left_entry`: an operand of any strides is read where it lies.
template <int Vectors, class T>
[[gnu::always_inline]] inline void add_strided_tile(const T* left, index_t left_entry, index_t left_step,
                                                    const T* right, index_t right_step, index_t depth,
                                                    Vec<T> (&sums)[kTileRows][Vectors]) {
  for (index_t k = 0; k < depth; ++k) {
    Vec<T> row[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) row[v] = load(right + v * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const Vec<T> entry = broadcast(left[i * left_entry]);
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) sums[i][v] += entry * row[v];
    }
    left += left_step;
    right += right_step;
  }
}

// As above from zero.
template <int Vectors, class T>
[[gnu::always_inline]] inline void multiply_strided_tile(const T* left, index_t left_entry, index_t left_step,
                                                         const T* right, index_t right_step, index_t depth,
                                                         Vec<T> (&sums)[kTileRows][Vectors]) {
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) sums[i][v] = Vec<T>{};
  }
  add_strided_tile<Vectors>(left, left_entry, left_step, right, right_step, depth, sums);
}

// As above from panels: the entries of a left row are neighbours.
template <int Vectors, class T>
[[gnu::always_inline]] inline void multiply_tile(const T* left, index_t left_step, const T* right, index_t right_step,
                                                 index_t depth, Vec<T> (&sums)[kTileRows][Vectors]) {
  multiply_strided_tile<Vectors>(left, 1, left_step, right, right_step, depth, sums);
}

// Calls body(integral_constant<int, vectors>) for a run-time number of vectors, 1 ... kTileVectors.
template <class T, class Body>
[[gnu::always_inline]] inline void with_vectors(index_t vectors, Body&& body) {
  if (vectors == 1) {
    body(std::integral_constant<int, 1>{});
  } else if (kTileVectors<T> == 2 || vectors == 2) {
    body(std::integral_constant<int, 2>{});
  } else {
    body(std::integral_constant<int, kTileVectors<T>>{});
  }
}

// Which entries of left^T right are wanted. `kUpper` keeps those with row <= column (and what shares their vectors).
enum class Part { kAll, kUpper };

// Tiles of left^T right: finish(row, column, sums) receives each, with its first row and column. Row tiles are dealt to
// the team. Rows and columns are rounded up to whole tiles and vectors: finish decides what it keeps.
template <class T, class Finish>
void multiply(const Panels<T>& left, index_t rows, const Panels<T>& right, index_t columns, index_t depth, Part part,
              Team team, Finish&& finish) {
  index_t turn = 0;
  for (index_t first = 0; first < columns; first += right.width) {
    const index_t end = std::min(columns, first + right.width);
    const index_t row_end = part == Part::kUpper ? std::min(rows, end) : rows;
    for (index_t row = 0; row < row_end; row += kTileRows, ++turn) {
      if (turn % team.size() != team.rank()) continue;
      const index_t skipped = part == Part::kUpper && row > first ? (row - first) / kLanes<T> * kLanes<T> : 0;
      const index_t column = first + skipped;
      with_vectors<T>((end - column + kLanes<T> - 1) / kLanes<T>, [&](auto vectors) {
        Vec<T> sums[kTileRows][vectors.value];
        multiply_tile<vectors.value>(left.column(row), left.width, right.column(column), right.width, depth, sums);
        finish(row, column, sums);
      });
    }
  }
}

// As multiply, of all entries, for a left operand whose columns are the rows of an array, whole tiles of them.
template <class T, class Finish>
void multiply_rows_in_place(const T* left, index_t row_step, index_t rows, const Panels<T>& right, index_t columns,
                            index_t depth, Finish&& finish) {
  for (index_t column = 0; column < columns; column += right.width) {
    with_vectors<T>((std::min(right.width, columns - column) + kLanes<T> - 1) / kLanes<T>, [&](auto vectors) {
      for (index_t row = 0; row < rows; row += kTileRows) {
        Vec<T> sums[kTileRows][vectors.value];
        multiply_strided_tile<vectors.value>(left + row * row_step, row_step, 1, right.column(column), right.width,
                                             depth, sums);
        finish(row, column, sums);
      }
    });
  }
}

// The finish that stores scale * (previous + sums) into panels; previous is left out at the first block of a long sum.
template <class T>
struct StorePanels {
  Panels<T> to;
  bool add;
  T scale;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
    T* target = to.at(row, column);
    for (int i = 0; i < kTileRows; ++i, target += to.width) {
      for (int v = 0; v < Vectors; ++v) {
        const Vec<T> before = add ? load(target + v * kLanes<T>) : Vec<T>{};
        store(target + v * kLanes<T>, (before + sums[i][v]) * scale);
      }
    }
  }
};

}  // namespace subspan
