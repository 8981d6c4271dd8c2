// What the passes over class subspaces share: their bases as one matrix, read where they lie.
#pragma once
#include "core/batch.h"
#include "core/pack.h"

namespace subspan {

// Tiles of kTileRows basis vectors where column bases are stored: the entries of neighbouring vectors side by side.
template <class T>
constexpr bool kTransposesTiles = kLanes<T> >= kTileRows;

// tile[i][j] = from[j][i] for kLanes columns, rows of `from` being `step` apart.
template <class T>
inline void load_transposed(const T* from, index_t step, Vec<T> (&square)[kLanes<T>]) {
  for (int j = 0; j < kLanes<T>; ++j) {
    square[j] = Vec<T>{};
    std::memcpy(&square[j], from + j * step, kTileRows * sizeof(T));
  }
  transpose_square<T>(square);
}

// to[j][i] = tile[i][j], or added to it.
template <class T>
inline void store_transposed(const Vec<T> (&tile)[kTileRows], T* to, index_t step, bool add) {
  Vec<T> square[kLanes<T>] = {};
  for (int i = 0; i < kTileRows; ++i) square[i] = tile[i];
  transpose_square<T>(square);
  for (int j = 0; j < kLanes<T>; ++j) {
    Vec<T> before{};
    if (add) std::memcpy(&before, to + j * step, kTileRows * sizeof(T));
    const Vec<T> after = before + square[j];
    std::memcpy(to + j * step, &after, kTileRows * sizeof(T));
  }
}

// The bases of all classes of one item, row c k + i being vector i of class c.
template <class T>
class BasisRows {
 public:
  BasisRows(const TensorView& W, index_t item)
      : data_(batch_item(W, 3, item)),
        dtype_(W.dtype),
        classes_(W.size(-3)),
        rank_(W.size(-2)),
        length_(W.size(-1)),
        class_step_(W.step(-3)),
        row_step_(W.size(-2) == 1 ? W.step(-3) : W.step(-2)),
        entry_step_(W.step(-1)),
        evenly_(classes_ <= 1 || rank_ == 1 || W.step(-3) == W.size(-2) * W.step(-2)) {}

  index_t classes() const { return classes_; }
  index_t rank() const { return rank_; }  // rows of a class
  index_t count() const { return classes_ * rank_; }
  index_t length() const { return length_; }
  index_t row_step() const { return row_step_; }
  index_t entry_step() const { return entry_step_; }

  // Rows are of type T; all of them are one step apart; so are those of a tile that does not begin within a class.
  bool native() const { return dtype_ == (sizeof(T) == 4 ? DType::f32 : DType::f64); }
  bool evenly_spaced() const { return evenly_; }
  bool tiles_in_place() const { return native() && (evenly_ || rank_ % kTileRows == 0); }

  // Whether column bases are stored, in tiles that load_transposed takes.
  bool tiles_of_columns() const {
    return kTransposesTiles<T> && native() && row_step_ == 1 && rank_ > 1 && rank_ % kTileRows == 0;
  }

  const T* at(index_t row) const { return static_cast<const T*>(data_) + offset(row); }

  // `offsets`: one entry for each of `count` rows.
  Rows<T> gathered(index_t first, index_t count, index_t* offsets) const {
    for (index_t i = 0; i < count; ++i) offsets[i] = offset(first + i);
    return Rows<T>(data_, dtype_, 1, entry_step_).gathered(offsets);
  }

 private:
  index_t offset(index_t row) const {
    return evenly_ ? row * row_step_ : row / rank_ * class_step_ + row % rank_ * row_step_;
  }

  const void* data_;
  DType dtype_;
  index_t classes_, rank_, length_, class_step_, row_step_, entry_step_;
  bool evenly_;
};

// sums[c] += z^2 over the lanes of one row of projections, in double: no square of a float leaves its range.
template <class T>
inline void add_squares(const T* projection, index_t lanes, double* sums) {
  for (index_t lane = 0; lane < lanes; ++lane) {
    sums[lane] += static_cast<double>(projection[lane]) * static_cast<double>(projection[lane]);
  }
}

// 1 / ||x|| from the square of the length, and 0 for a length of 0.
inline double inverse_length(double square) { return square == 0 ? 0 : 1 / std::sqrt(square); }

}  // namespace subspan
