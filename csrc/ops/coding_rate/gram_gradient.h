// The product that is the gradient of a rate: rows times M, or K^{-1} times rows, written where the caller wants it.
#pragma once
#include "core/pack.h"
#include "ops/coding_rate/gram_problem.h"

namespace subspan {

// The rows of a Gram problem, and what the finish needs to know of them.
template <class T>
struct GradientRows {
  Rows<T> rows;
  index_t samples, features;
  const index_t* order;  // row i of the problem is row order[i] of the target; null: row i
  const T* root;         // scales row i of the gradient; null: 1
};

// Tiles of the gradient, `rows` x `columns` of them valid, for the samples from row0 and the features from column0 on.
template <class T, class Out>
struct StoreGradient {
  const GradientTarget& target;
  const GradientRows<T>& of;
  index_t row0, rows, column0, columns;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
    // Most tiles are whole and of the type computed in: these get loops without questions.
    const bool whole = row + kTileRows <= rows && column + Vectors * kLanes<T> <= columns;
    if (std::is_same_v<T, Out> && whole) {
      target.add ? put_whole<true>(row, column, sums) : put_whole<false>(row, column, sums);
      return;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      if (row + i >= rows) break;
      const T factor = scale(row0 + row + i);
      Out* out = out_row(row0 + row + i) + column0 + column;
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) {
        put(out + v * kLanes<T>, sums[i][v] * factor, columns - column - v * kLanes<T>);
      }
    }
  }

  T scale(index_t sample) const {
    const T coefficient = static_cast<T>(target.coefficient);
    return of.root ? coefficient * of.root[sample] : coefficient;
  }
  Out* out_row(index_t sample) const {
    return static_cast<Out*>(target.data) + (of.order ? of.order[sample] : sample) * of.features;
  }
  template <bool Add, int Vectors>
  [[gnu::always_inline]] void put_whole(index_t row, index_t column, const Vec<T> (&sums)[kTileRows][Vectors]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const T factor = scale(row0 + row + i);
      T* out = reinterpret_cast<T*>(out_row(row0 + row + i)) + column0 + column;
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v, out += kLanes<T>) {
        store(out, Add ? load(out) + sums[i][v] * factor : sums[i][v] * factor);
      }
    }
  }
  [[gnu::always_inline]] void put(Out* out, Vec<T> value, index_t count) const {
    if (std::is_same_v<T, Out> && count >= kLanes<T>) {
      T* same = reinterpret_cast<T*>(out);
      store(same, target.add ? load(same) + value : value);
      return;
    }
    for (index_t lane = 0; lane < std::min<index_t>(count, kLanes<T>); ++lane) {
      out[lane] = static_cast<Out>(target.add ? static_cast<T>(out[lane]) + value[lane] : value[lane]);
    }
  }
};

// S Z for a symmetric S (samples x samples), a strip of features at a time.
template <class Out, class T>
void write_left_product(const Panels<T>& symmetric, const GradientRows<T>& of, const GradientTarget& target,
                        Team team) {
  constexpr index_t strip_panels = 2;
  Workspace workspace;
  const index_t width = strip_panels * kPanelWidth<T>;
  const Panels<T> strip{workspace.take<T>(of.samples * width), of.samples, kPanelWidth<T>};
  for (index_t first = team.rank() * width; first < of.features; first += team.size() * width) {
    const index_t columns = std::min(width, of.features - first);
    const StoreGradient<T, Out> finish{target, of, 0, of.samples, first, columns};
    pack_columns(of.rows, 0, of.samples, first, columns, strip);
    multiply(symmetric, of.samples, strip, columns, of.samples, Part::kAll, Team(), finish);
  }
}

// Z M for a symmetric M (features x features), a strip of samples at a time. Whole tiles of them are read where they
// lie.
template <class Out, class T>
void write_right_product(const Panels<T>& symmetric, const GradientRows<T>& of, const GradientTarget& target,
                         Team team) {
  Workspace workspace;
  const index_t width = 2 * kPanelWidth<T>;
  const Panels<T> strip{workspace.take<T>(of.features * width), of.features, kPanelWidth<T>};
  for (index_t first = team.rank() * width; first < of.samples; first += team.size() * width) {
    const index_t rows = std::min(width, of.samples - first);
    const StoreGradient<T, Out> finish{target, of, first, rows, 0, of.features};
    if (of.rows.evenly_in_place() && rows % kTileRows == 0) {
      multiply_rows_in_place(of.rows.read(first, 0, of.features, nullptr), of.rows.row_step(), rows, symmetric,
                             of.features, of.features, finish);
    } else {
      pack_rows(of.rows, first, rows, 0, of.features, strip);
      multiply(strip, rows, symmetric, of.features, of.features, Part::kAll, Team(), finish);
    }
  }
}

}  // namespace subspan
