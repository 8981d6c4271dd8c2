// The two forms of a class's symmetric matrix: a row of pairs (feature_pairs.h), and the upper triangle in the panels
// of a factor. A diagonal of the triangle is a run of neighbouring pairs, so squares of it, sheared, are transposed.
#pragma once
#include "core/workspace.h"
#include "ops/coding_rate/feature_pairs.h"

namespace subspan {

template <class T>
class PairTriangle {
 public:
  PairTriangle(const FeaturePairs<T>& pairs, Workspace& workspace)
      : pairs_(&pairs),
        line_(workspace.take<T>(pairs.count() + kLanes<T>)),
        step_(round_up(pairs.features(), kLanes<T>) + 2 * kLanes<T>),
        rows_(workspace.take<T>(kLanes<T> * step_)) {}

  // Upper triangle of `matrix` = scale * row c of `from`.
  void unpack(const Panels<T>& from, index_t c, T scale, const Panels<T>& matrix) const {
    constexpr index_t lanes = kLanes<T>;
    const index_t features = pairs_->features();
    for_each_vector(from, c, [](T* pair, T* of_line) { store(of_line, load(pair)); });
    for (index_t low = 0; low < features; low += lanes) {
      for (index_t shift = 0; shift < features - low; shift += lanes) {
        Vec<T> square[lanes];
#pragma GCC unroll 16
        for (index_t k = 0; k < lanes; ++k) square[k] = load(line_ + index(std::min(shift + k, features - 1), low));
        transpose_square<T>(square);
        T* row = rows_ + shift;
#pragma GCC unroll 16
        for (index_t i = 0; i < lanes; ++i) store(row + i * (step_ + 1), square[i]);
      }
      for_each_row_vector(matrix, low, [scale](T* entries, T* row) { store(entries, scale * load(row)); });
    }
  }

  // Row c of `to` = the upper triangle of `matrix`; padding is zero.
  void pack(const Panels<T>& matrix, const Panels<T>& to, index_t c) const {
    constexpr index_t lanes = kLanes<T>;
    const index_t features = pairs_->features();
    std::fill_n(line_, pairs_->count(), T(0));
    // From the last rows up: whole vectors of a shift also cover pairs that continue it around the end, which are set
    // afterwards, by rows further up.
    for (index_t low = (features - 1) / lanes * lanes; low >= 0; low -= lanes) {
      for_each_row_vector(matrix, low, [](T* entries, T* row) { store(row, load(entries)); });
      for (index_t first = 0; first < features - low; first += lanes) {
        Vec<T> square[lanes];
#pragma GCC unroll 16
        for (index_t i = 0; i < lanes; ++i) {
          square[i] = low + i < features ? load(rows_ + first + i * (step_ + 1)) : Vec<T>{};
        }
        transpose_square<T>(square);
        for (index_t k = 0; k < lanes; ++k) {
          const index_t shift = first + k, count = features - low - shift;
          if (2 * shift <= features) store(line_ + pairs_->index(shift, low), square[k]);
          if (2 * shift >= features && count > 0) {
            store_partial(line_ + pairs_->index(features - shift, low + shift), square[k], std::min(lanes, count));
          }
        }
      }
    }
    for_each_vector(to, c, [](T* pair, T* of_line) { store(pair, load(of_line)); });
  }

 private:
  // The pair (low, low + shift).
  index_t index(index_t shift, index_t low) const {
    const index_t features = pairs_->features();
    return 2 * shift <= features ? pairs_->index(shift, low) : pairs_->index(features - shift, low + shift);
  }

  // body(pairs of row c, their place in the line), a vector each.
  template <class Body>
  void for_each_vector(const Panels<T>& pairs, index_t c, Body&& body) const {
    T* of_line = line_;
    for (index_t p = 0; p < pairs_->count() / pairs.width; ++p) {
      T* row = pairs.panel(p) + c * pairs.width;
      for (index_t k = 0; k < pairs.width; k += kLanes<T>, of_line += kLanes<T>) body(row + k, of_line);
    }
  }

  // body(entries of the matrix, their place in rows_), a vector each, for the rows from `low` on.
  template <class Body>
  void for_each_row_vector(const Panels<T>& matrix, index_t low, Body&& body) const {
    const index_t count = std::min<index_t>(kLanes<T>, pairs_->features() - low);
    for (index_t column = low; column < pairs_->features(); column += kLanes<T>) {
      T* entries = matrix.at(low, column);
      T* row = rows_ + column - low;
      for (index_t i = 0; i < count; ++i) body(entries + i * matrix.width, row + i * step_);
    }
  }

  static void store_partial(T* to, const Vec<T>& value, index_t count) {
    if (count == kLanes<T>) return store(to, value);
    for (index_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
  }

  const FeaturePairs<T>* pairs_;
  T* line_;
  index_t step_;  // of rows_: a row is moved by up to as many columns as it has lanes
  T* rows_;       // a vector's worth of rows, from their first column on
};

}  // namespace subspan
