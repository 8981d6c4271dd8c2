// A basis as a few long vectors: read and written in blocks of their length, whatever their layout, with dot products
// in float64 and linear combinations. Everything tall that the maps of the Grassmann manifold do is one of these two.
#pragma once
#include "core/batch.h"
#include "core/row_dots.h"
#include "core/small_matrix/square.h"

namespace subspan {

constexpr index_t kBlockLength = 256;   // of a block: 16 vectors of float32 are half of a first-level cache
constexpr index_t kChunkLength = 1024;  // of what one member of a team sums up; fixed, so that sums are too

// A block of vectors: entry i of vector j at data[j * step + i]. What follows the last entry up to a whole SIMD vector
// is zero.
template <class T>
struct Block {
  const T* data;
  index_t step;
  const T* operator[](index_t vector) const { return data + vector * step; }
};

template <class T>
class LongVectors {
 public:
  // `vectors_first`: the matrix is (count, length), otherwise (length, count).
  LongVectors(const TensorView& view, index_t item, bool vectors_first)
      : data_(const_cast<void*>(batch_item(view, 2, item))),
        dtype_(view.dtype),
        length_(view.size(vectors_first ? -1 : -2)),
        count_(view.size(vectors_first ? -2 : -1)),
        entry_step_(view.step(vectors_first ? -1 : -2)),
        vector_step_(view.step(vectors_first ? -2 : -1)) {}

  index_t length() const { return length_; }
  index_t count() const { return count_; }
  // Entries that a buffer for one block needs.
  index_t buffer_size() const { return count_ * kBlockLength; }

  // Whether blocks of this size can be read where they lie.
  bool in_place(index_t size) const { return dtype_ == own_type() && entry_step_ == 1 && size % kLanes<T> == 0; }

  // Entries [first, first + size) of all vectors: where they lie, or a packed and converted copy in `buffer`.
  Block<T> read(index_t first, index_t size, T* buffer) const {
    if (in_place(size)) {
      return {static_cast<const T*>(data_) + first, vector_step_};
    }
    copy(first, size, buffer);
    return {buffer, kBlockLength};
  }

  // As read, always a copy.
  void copy(index_t first, index_t size, T* buffer) const {
    const Rows<T> rows(data_, dtype_, entry_step_, vector_step_);
    if (vector_step_ == 1 && entry_step_ != 1) return copy_transposed(rows, first, size, buffer);
    const Rows<T> vectors(data_, dtype_, vector_step_, entry_step_);
    for (index_t j = 0; j < count_; ++j) {
      T* out = buffer + j * kBlockLength;
      const T* in = vectors.read(j, first, size, out);
      if (in != out) std::copy_n(in, size, out);
      pad(out, size);
    }
  }

  // The inverse of copy, of arrays of type T.
  void write(index_t first, index_t size, const T* buffer) const {
    T* out = static_cast<T*>(data_) + first * entry_step_;
    if (vector_step_ == 1 && entry_step_ != 1) return write_transposed(out, size, buffer);
    for (index_t j = 0; j < count_; ++j, out += vector_step_) {
      const T* in = buffer + j * kBlockLength;
      if (entry_step_ == 1) {
        std::copy_n(in, size, out);
      } else {
        for (index_t i = 0; i < size; ++i) out[i * entry_step_] = in[i];
      }
    }
  }

 private:
  static constexpr index_t lanes = kLanes<T>, half = lanes / 2;
  static constexpr DType own_type() { return sizeof(T) == 4 ? DType::f32 : DType::f64; }
  static void pad(T* vector, index_t size) {
    for (index_t i = size; i < round_up(size, lanes); ++i) vector[i] = 0;
  }

  // Vectors are the columns of rows in memory: squares of them are transposed in registers, of half the width where
  // fewer vectors are left.
  void copy_transposed(const Rows<T>& rows, index_t first, index_t size, T* buffer) const {
    T scratch[lanes][lanes];
    for (index_t i = 0; i < size; i += lanes) {
      const index_t present = std::min(lanes, size - i);
      for (index_t j = 0; j < count_; j += lanes) {
        const index_t wide = std::min(lanes, count_ - j);
        T* out = buffer + j * kBlockLength + i;
        if (rows.in_place() && present == lanes && (wide == lanes || wide == half)) {
          const T* in = static_cast<const T*>(data_) + (first + i) * entry_step_ + j;
          wide == lanes ? read_square(in, entry_step_, out) : read_half_squares(in, entry_step_, out);
          continue;
        }
        Vec<T> square[lanes] = {};
        for (index_t r = 0; r < present; ++r) {
          square[r] = load_partial(rows.read(first + i + r, j, wide, scratch[r]), wide);
        }
        transpose_square<T>(square);
        for (index_t v = 0; v < wide; ++v) store(out + v * kBlockLength, square[v]);
      }
    }
  }

  void write_transposed(T* out, index_t size, const T* buffer) const {
    for (index_t i = 0; i < size; i += lanes) {
      const index_t present = std::min(lanes, size - i);
      for (index_t j = 0; j < count_; j += lanes) {
        const index_t wide = std::min(lanes, count_ - j);
        const T* in = buffer + j * kBlockLength + i;
        T* to = out + i * entry_step_ + j;
        if (present == lanes && wide == lanes) {
          write_square(to, entry_step_, in);
        } else if (present == lanes && wide == half) {
          write_half_squares(to, entry_step_, in);
        } else {
          for (index_t r = 0; r < present; ++r) {
            for (index_t v = 0; v < wide; ++v) to[r * entry_step_ + v] = in[v * kBlockLength + r];
          }
        }
      }
    }
  }

  static void read_square(const T* in, index_t step, T* out) {
    Vec<T> square[lanes];
#pragma GCC unroll 16
    for (int r = 0; r < lanes; ++r) square[r] = load(in + r * step);
    transpose_square<T>(square);
#pragma GCC unroll 16
    for (int v = 0; v < lanes; ++v) store(out + v * kBlockLength, square[v]);
  }
  static void write_square(T* out, index_t step, const T* in) {
    Vec<T> square[lanes];
#pragma GCC unroll 16
    for (int v = 0; v < lanes; ++v) square[v] = load(in + v * kBlockLength);
    transpose_square<T>(square);
#pragma GCC unroll 16
    for (int r = 0; r < lanes; ++r) store(out + r * step, square[r]);
  }
  // Half as many vectors, of as many entries.
  static void read_half_squares(const T* in, index_t step, T* out) {
    Vec<T> squares[half];
#pragma GCC unroll 8
    for (int r = 0; r < half; ++r) squares[r] = load_halves(in + r * step, in + (r + half) * step);
    transpose_half_squares<T>(squares);
#pragma GCC unroll 8
    for (int v = 0; v < half; ++v) store(out + v * kBlockLength, squares[v]);
  }
  static void write_half_squares(T* out, index_t step, const T* in) {
    Vec<T> squares[half];
#pragma GCC unroll 8
    for (int v = 0; v < half; ++v) squares[v] = load(in + v * kBlockLength);
    transpose_half_squares<T>(squares);
#pragma GCC unroll 8
    for (int r = 0; r < half; ++r) store_halves(out + r * step, out + (r + half) * step, squares[r]);
  }

  void* data_;
  DType dtype_;
  index_t length_, count_, entry_step_, vector_step_;
};

// The block in float64, for dot products: itself, or a copy in `buffer`. Each entry takes part in many products: it is
// converted once.
inline Block<double> in_double(const Block<double>& block, index_t, index_t, double*) { return block; }
inline Block<double> in_double(const Block<float>& block, index_t count, index_t size, double* buffer) {
  const index_t padded = round_up(size, kLanes<float>);
  for (index_t j = 0; j < count; ++j) {
    const float* in = block[j];
    double* out = buffer + j * kBlockLength;
    for (index_t i = 0; i < padded; ++i) out[i] = static_cast<double>(in[i]);
  }
  return {buffer, kBlockLength};
}

// to(a, b) += <left[a], right[b]>. `symmetric`: left and right are the same, and only tiles that reach the upper
// triangle are computed; complete_symmetric fills in the others.
template <class T>
inline void add_dots(const Block<T>& left, const Block<T>& right, index_t size, bool symmetric, const Square& to) {
  constexpr index_t tile = detail::kDotRows;
  const index_t count = to.size, padded = round_up(size, kLanes<T>);
  for (index_t a0 = 0; a0 < count; a0 += tile) {
    const index_t rows = std::min(tile, count - a0);
    for (index_t b0 = symmetric ? a0 : 0; b0 < count; b0 += tile) {
      const index_t columns = std::min(tile, count - b0);
      const T *l[tile], *r[tile];
      for (index_t i = 0; i < tile; ++i) {
        l[i] = left[std::min(a0 + i, count - 1)];
        r[i] = right[std::min(b0 + i, count - 1)];
      }
      T dots[tile][tile];
      detail::dot_tile<T>(l, r, padded, dots);
      double* out = &to(a0, b0);
      for (index_t a = 0; a < rows; ++a, out += to.panels.width) {
        for (index_t b = 0; b < columns; ++b) out[b] += dots[a][b];
      }
    }
  }
}

inline void complete_symmetric(const Square& square) {
  for (index_t i = 0; i < square.size; ++i) {
    for (index_t j = 0; j < i; ++j) square(i, j) = square(j, i);
  }
}

// 0, or NaN where an entry is not finite. Added to a Gram matrix it makes the whole item NaN.
template <class T>
double finite_probe(const Block<T>& block, index_t count, index_t size) {
  Vec<T> sum{};
  for (index_t j = 0; j < count; ++j) {
    for (index_t i = 0; i < size; i += kLanes<T>) sum += load(block[j] + i) * T(0);
  }
  double total = 0;
  for (index_t lane = 0; lane < kLanes<T>; ++lane) total += static_cast<double>(sum[lane]);
  return total;
}

// Coefficients of linear combinations: out_i = sum_s sum_j coefficient_s(j, i) in_s_j for up to three inputs s.
template <class T>
class Combination {
 public:
  static constexpr index_t kOutputs = 4;  // computed together

  Combination(index_t count, int inputs, Workspace& workspace)
      : count_(count), step_(round_up(count, kOutputs)), coefficients_(workspace.take<T>(inputs * count * step_)) {
    std::fill_n(coefficients_, inputs * count * step_, T(0));
  }

  // Adds an input.
  void append(const Square& coefficients) {
    T* out = coefficients_ + inputs_++ * count_ * step_;
    for (index_t j = 0; j < count_; ++j) {
      for (index_t i = 0; i < count_; ++i) out[j * step_ + i] = static_cast<T>(coefficients(j, i));
    }
  }

  // Entries of the outputs, kBlockLength apart, from as many blocks as there are inputs.
  void run(const Block<T>* in, index_t size, T* out) const {
    constexpr index_t lanes = kLanes<T>;
    const index_t padded = round_up(size, lanes);
    for (index_t i = 0; i < count_; i += kOutputs) {
      index_t first = 0;
      for (; first + 4 * lanes <= padded; first += 4 * lanes) tile<4>(in, i, first, out);
      for (; first < padded; first += lanes) tile<1>(in, i, first, out);
    }
  }

 private:
  template <int Vectors>
  void tile(const Block<T>* in, index_t output, index_t first, T* out) const {
    Vec<T> sums[kOutputs][Vectors] = {};
    const T* coefficient = coefficients_ + output;
    for (int s = 0; s < inputs_; ++s) {
      const T* entries = in[s].data + first;
      for (index_t j = 0; j < count_; ++j, entries += in[s].step, coefficient += step_) {
        Vec<T> x[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) x[v] = load(entries + v * kLanes<T>);
#pragma GCC unroll 4
        for (int i = 0; i < kOutputs; ++i) {
#pragma GCC unroll 4
          for (int v = 0; v < Vectors; ++v) sums[i][v] += broadcast(coefficient[i]) * x[v];
        }
      }
    }
    for (index_t i = 0; i < std::min(kOutputs, count_ - output); ++i) {
      for (int v = 0; v < Vectors; ++v) store(out + (output + i) * kBlockLength + first + v * kLanes<T>, sums[i][v]);
    }
  }

  index_t count_, step_;
  T* coefficients_;
  int inputs_ = 0;
};

}  // namespace subspan
