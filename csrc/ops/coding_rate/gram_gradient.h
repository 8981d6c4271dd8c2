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
    const T coefficient = static_cast<T>(target.coefficient);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      if (row + i >= rows) break;
      const index_t sample = row0 + row + i;
      const T scale = of.root ? coefficient * of.root[sample] : coefficient;
      const index_t out_row = of.order ? of.order[sample] : sample;
      Out* out = static_cast<Out*>(target.data) + out_row * of.features + column0 + column;
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) {
        put(out + v * kLanes<T>, sums[i][v] * scale, columns - column - v * kLanes<T>);
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

// Z M for a symmetric M (features x features), a strip of samples at a time.
template <class Out, class T>
void write_right_product(const Panels<T>& symmetric, const GradientRows<T>& of, const GradientTarget& target,
                         Team team) {
  Workspace workspace;
  const index_t width = 2 * kPanelWidth<T>;
  const Panels<T> strip{workspace.take<T>(of.features * width), of.features, kPanelWidth<T>};
  for (index_t first = team.rank() * width; first < of.samples; first += team.size() * width) {
    const index_t rows = std::min(width, of.samples - first);
    const StoreGradient<T, Out> finish{target, of, first, rows, 0, of.features};
    pack_rows(of.rows, first, rows, 0, of.features, strip);
    multiply(strip, rows, symmetric, of.features, of.features, Part::kAll, Team(), finish);
  }
}

}  // namespace subspan
