// Frames: tall matrices of few columns, in blocks of rows that are packed in float64 once and are then either operand
// of the micro-kernel. What maps of frames do is Gram matrices and products with small matrices.
#pragma once
#include "core/batch.h"
#include "core/pack.h"
#include "core/small_matrix/gram_schmidt.h"

namespace subspan {

// A row-major matrix in float64 whose rows are whole vectors, an odd number of them: rows do not compete for the same
// lines of the first cache. What pads a row is zero.
struct Dense {
  double* data = nullptr;
  index_t step = 0;

  double* row(index_t r) const { return data + r * step; }
  double& operator()(index_t r, index_t c) const { return data[r * step + c]; }
  static index_t step_of(index_t columns) {
    return ((columns + kLanes<double> - 1) / kLanes<double> / 2 * 2 + 1) * kLanes<double>;
  }
  static index_t elements(index_t rows, index_t columns) { return round_up(rows, kTileRows) * step_of(columns); }
  static Dense take(index_t rows, index_t columns, Workspace& workspace) {
    const Dense dense{workspace.take<double>(elements(rows, columns)), step_of(columns)};
    std::fill_n(dense.data, elements(rows, columns), 0.0);
    return dense;
  }
};

namespace detail {

template <class Stored>
inline Vec<double> load_double(const Stored* from, index_t count) {
  Stored entries[kLanes<double>] = {};
  std::memcpy(entries, from, static_cast<std::size_t>(count) * sizeof(Stored));
  return load_double(entries);
}

template <class Stored>
inline void store_as(Stored* to, Vec<double> v) {
  typedef Stored Narrow __attribute__((vector_size(kLanes<double> * sizeof(Stored))));
  const Narrow entries = __builtin_convertvector(v, Narrow);
  std::memcpy(to, &entries, sizeof entries);
}

template <class Stored>
inline void store_as(Stored* to, Vec<double> v, index_t count) {
  typedef Stored Narrow __attribute__((vector_size(kLanes<double> * sizeof(Stored))));
  const Narrow entries = __builtin_convertvector(v, Narrow);
  if (count >= kLanes<double>) {
    std::memcpy(to, &entries, sizeof entries);
  } else {
    Stored lanes[kLanes<double>];
    std::memcpy(lanes, &entries, sizeof entries);
    for (index_t i = 0; i < count; ++i) to[i] = lanes[i];
  }
}

}  // namespace detail

// One item of a batch of frames; with `rows` the array is (count, length), otherwise (length, count).
class Frame {
 public:
  Frame(const TensorView& view, index_t item, bool rows)
      : data_(const_cast<void*>(batch_item(view, 2, item))),
        dtype_(view.dtype),
        length_(view.size(rows ? -1 : -2)),
        count_(view.size(rows ? -2 : -1)),
        row_step_(view.step(rows ? -1 : -2)),
        column_step_(view.step(rows ? -2 : -1)) {}

  index_t length() const { return length_; }
  index_t count() const { return count_; }
  DType dtype() const { return dtype_; }
  void* data() const { return data_; }
  index_t row_step() const { return row_step_; }
  index_t column_step() const { return column_step_; }

  // Rows first ... first + size - 1 in float64.
  void pack(index_t first, index_t size, const Dense& to) const {
    if (dtype_ == DType::f32) return pack_native(static_cast<const float*>(data_), first, size, to);
    if (dtype_ == DType::f64) return pack_native(static_cast<const double*>(data_), first, size, to);
    pack_any(first, size, to);
  }

  // Rows [row, row + kTileRows) and columns from `column` on of an array of type T; what lies outside is dropped.
  template <class T, int Vectors>
  [[gnu::always_inline]] void write(index_t row, index_t column, const Vec<double> (&tile)[kTileRows][Vectors]) const {
    constexpr index_t lanes = kLanes<double>;
    T* out = static_cast<T*>(data_) + row * row_step_ + column * column_step_;
    const index_t rows = std::min<index_t>(kTileRows, length_ - row), columns = count_ - column;
    if (column_step_ == 1 && columns >= Vectors * lanes && rows == kTileRows) {
      const index_t step = row_step_;
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) detail::store_as(out + i * step + v * lanes, tile[i][v]);
      }
      return;
    }
    if (column_step_ == 1) {
      for (index_t i = 0; i < rows; ++i) {
        for (int v = 0; v < Vectors; ++v)
          detail::store_as(out + i * row_step_ + v * lanes, tile[i][v], columns - v * lanes);
      }
      return;
    }
    for (index_t i = 0; i < rows; i += lanes) {
      for (int v = 0; v < Vectors; ++v) {
        Vec<double> square[lanes];
        for (index_t r = 0; r < lanes; ++r) square[r] = tile[i + r][v];
        transpose_square<double>(square);
        for (index_t c = 0; c < std::min(lanes, columns - v * lanes); ++c) {
          T* to = out + i * row_step_ + (v * lanes + c) * column_step_;
          if (row_step_ == 1) {
            detail::store_as(to, square[c], rows - i);
          } else {
            for (index_t r = 0; r < std::min(lanes, rows - i); ++r) to[r * row_step_] = static_cast<T>(square[c][r]);
          }
        }
      }
    }
  }

  // A single column whose entries are neighbours.
  bool is_vector() const { return count_ == 1 && row_step_ == 1 && (dtype_ == DType::f32 || dtype_ == DType::f64); }
  bool same_type(const Frame& other) const { return dtype_ == other.dtype_; }
  // Of a single column; the same for any layout.
  double square() const {
    if (is_vector() && dtype_ == DType::f32) return square_of(static_cast<const float*>(data_));
    Workspace workspace;
    const Rows<double> column(data_, dtype_, 0, row_step_);
    return square_of(column.read(0, 0, length_, workspace.take<double>(length_)));
  }
  template <class T>
  void write_multiple(double factor, const Frame& from) const {
    const T* in = static_cast<const T*>(from.data_);
    T* out = static_cast<T*>(data_);
    constexpr index_t lanes = kLanes<double>;
    for (index_t r = 0; r < length_; r += lanes) {
      const index_t present = std::min(lanes, length_ - r);
      const Vec<double> x = present == lanes ? detail::load_double(in + r) : detail::load_double(in + r, present);
      detail::store_as(out + r, x * factor, present);
    }
  }

 private:
  template <class Stored>
  double square_of(const Stored* in) const {
    constexpr index_t lanes = kLanes<double>;
    Vec<double> sums[4] = {};
    index_t r = 0;
    for (; r + 4 * lanes <= length_; r += 4 * lanes) {
      for (int i = 0; i < 4; ++i) {
        const Vec<double> x = detail::load_double(in + r + i * lanes);
        sums[i] += x * x;
      }
    }
    for (; r < length_; r += lanes) {
      const Vec<double> x = detail::load_double(in + r, std::min(lanes, length_ - r));
      sums[0] += x * x;
    }
    const Vec<double> total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double sum = 0;
    for (index_t lane = 0; lane < lanes; ++lane) sum += total[lane];
    return sum;
  }

  template <class Stored>
  void pack_native(const Stored* data, index_t first, index_t size, const Dense& to) const {
    constexpr index_t lanes = kLanes<double>;
    if (column_step_ == 1) {
      const index_t count = count_, from_step = row_step_, to_step = to.step;  // stores might change the members
      const Stored* in = data + first * from_step;
      double* out = to.data;
      if (count == lanes) {
        for (index_t r = 0; r < size; ++r, in += from_step, out += to_step) {
          __builtin_prefetch(in + kLookahead / sizeof(Stored), 0, 3);
          store(out, detail::load_double(in));
        }
        return;
      }
      for (index_t r = 0; r < size; ++r, in += from_step, out += to_step) {
        index_t c = 0;
        for (; c + lanes <= count; c += lanes) store(out + c, detail::load_double(in + c));
        if (c < count) store(out + c, detail::load_double(in + c, count - c));
      }
      return;
    }
    if (row_step_ != 1) return pack_any(first, size, to);
    for (index_t r = 0; r < size; r += lanes) {
      const index_t present = std::min(lanes, size - r);
      for (index_t c = 0; c < count_; c += lanes) {
        Vec<double> square[lanes];
        for (index_t i = 0; i < lanes; ++i) {
          const Stored* in = data + first + r + (c + i) * column_step_;
          square[i] = c + i >= count_    ? Vec<double>{}
                      : present == lanes ? detail::load_double(in)
                                         : detail::load_double(in, present);
        }
        transpose_square<double>(square);
        for (index_t i = 0; i < present; ++i) store(to.row(r + i) + c, square[i]);
      }
    }
  }

  void pack_any(index_t first, index_t size, const Dense& to) const {
    const Rows<double> rows(data_, dtype_, row_step_, column_step_);
    for (index_t r = 0; r < size; ++r) {
      const double* in = rows.read(first + r, 0, count_, to.row(r));
      if (in != to.row(r)) std::copy_n(in, count_, to.row(r));
    }
  }

  void* data_;
  DType dtype_;
  index_t length_, count_, row_step_, column_step_;
};

// Rows of a block: 32 KB where that is many rows.
inline index_t frame_block(index_t length, index_t count) {
  const index_t rows = std::clamp<index_t>(4096 / Dense::step_of(count) / kTileRows * kTileRows, 128, 512);
  return std::min(rows, round_up(length, kTileRows));
}

// body(first row, rows) for all blocks.
template <class Body>
inline void each_block(index_t length, index_t block, Body&& body) {
  for (index_t first = 0; first < length; first += block) body(first, std::min(block, length - first));
}

// Tiles of left^T right, entry (k, i) of the left operand lying at left[k * left_step + i * left_entry], to
// finish(row, column, sums). `upper`: what is below the diagonal may be left out. Tiles are dealt to the team.
template <class Finish>
inline void dense_product(const double* left, index_t left_entry, index_t left_step, const Dense& right, index_t count,
                          index_t depth, bool upper, Team team, Finish&& finish) {
  constexpr index_t width = kPanelWidth<double>;
  index_t turn = 0;
  for (index_t first = 0; first < count; first += width) {
    const index_t end = std::min(count, first + width);
    for (index_t row = 0; row < (upper ? end : count); row += kTileRows, ++turn) {
      if (turn % team.size() != team.rank()) continue;
      const index_t column = upper && row > first ? first + (row - first) / kLanes<double> * kLanes<double> : first;
      with_vectors<double>((end - column + kLanes<double> - 1) / kLanes<double>, [&](auto vectors) {
        Vec<double> sums[kTileRows][vectors.value];
        multiply_strided_tile<vectors.value>(left + row * left_entry, left_entry, left_step, right.data + column,
                                             right.step, depth, sums);
        finish(row, column, sums);
      });
    }
  }
}

// The finish that makes `to` keep * from + scale * product; with a keep of 0, `from`, perhaps NaN, is not read.
struct StoreDense {
  Dense to, from;
  double keep, scale;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<double> (&sums)[kTileRows][Vectors]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) {
        const index_t at = column + v * kLanes<double>;
        const Vec<double> kept = keep == 0 ? Vec<double>{} : load(from.row(row + i) + at) * keep;
        store(to.row(row + i) + at, kept + sums[i][v] * scale);
      }
    }
  }
};

// to += left^T right over `depth` rows of two blocks of `count` columns.
inline void add_products(const Dense& left, const Dense& right, index_t count, index_t depth, bool upper,
                         const Dense& to, Team team = Team()) {
  dense_product(left.data, 1, left.step, right, count, depth, upper, team, StoreDense{to, to, 1, 1});
}

// to = A B
inline void multiply_dense(const Dense& A, const Dense& B, index_t count, const Dense& to) {
  dense_product(A.data, A.step, 1, B, count, count, false, Team(), StoreDense{to, to, 0, 1});
}

// Writes rows [first, first + size) of sum_s block_s weights_s, of one or two packed blocks. `triangular`: the first
// weights are zero below the diagonal, and the only ones.
template <class T, int inputs>
inline void write_product(const Dense (&blocks)[inputs], const Dense (&weights)[inputs], bool triangular, index_t first,
                          index_t size, const Frame& to) {
  constexpr index_t width = kPanelWidth<double>;
  const index_t count = to.count();
  // A step that the compiler knows spares it the addresses of eight rows.
  const auto with_step = [&](auto step) {
    for (index_t column = 0; column < count; column += width) {
      const index_t end = std::min(count, column + width);
      const index_t depth = triangular ? end : count;
      with_vectors<double>((end - column + kLanes<double> - 1) / kLanes<double>, [&](auto vectors) {
        for (index_t row = 0; row < size; row += kTileRows) {
          Vec<double> sums[kTileRows][vectors.value];
          multiply_strided_tile<vectors.value>(blocks[0].data + row * step, step, index_t(1), weights[0].data + column,
                                               index_t(step), depth, sums);
          if constexpr (inputs == 2) {
            Vec<double> more[kTileRows][vectors.value];
            multiply_strided_tile<vectors.value>(blocks[1].data + row * step, step, index_t(1),
                                                 weights[1].data + column, index_t(step), depth, more);
            for (int i = 0; i < kTileRows; ++i) {
              for (int v = 0; v < vectors.value; ++v) sums[i][v] += more[i][v];
            }
          }
          to.template write<T>(first + row, column, sums);
        }
      });
    }
  };
  const index_t step = blocks[0].step;  // all have the same
  if (step == kLanes<double>) {
    with_step(std::integral_constant<index_t, kLanes<double>>{});
  } else {
    with_step(step);
  }
}

}  // namespace subspan
