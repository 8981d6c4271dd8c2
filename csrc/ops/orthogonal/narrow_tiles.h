// Tall matrices of few columns, by columns. Row by row, products of matrices that are at most half a vector wide leave
// lanes empty. Here a tile is kLanes rows, a vector for each column, even rows in its first half: two rows that are
// neighbours are read as one vector, tiles are transposed in registers, and a product with a small matrix is one
// multiply-add for each of its entries.
#pragma once
#include "core/small_matrix/gram_schmidt.h"
#include "ops/orthogonal/strips.h"

namespace subspan {

// Columns of a tile, at most.
template <class T>
constexpr index_t kNarrow = kLanes<T> / 2;
// Of the rows of a narrow matrix in panels.
template <class T>
constexpr index_t kNarrowStep = std::max<index_t>(kLanes<T>, kTileRows);

namespace detail {

template <class T, int... I>
inline Vec<T> split_pairs(Vec<T> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I * 2 % kLanes<T> + I * 2 / kLanes<T>)...);
}
template <class T, int... I>
inline Vec<T> join_pairs(Vec<T> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I / 2 + I % 2 * (kLanes<T> / 2))...);
}

// Row by row through memory: odd layouts, other types, the last rows.
template <class T>
[[gnu::noinline]] void read_tile_entries(const MatrixView& from, index_t row, index_t first, index_t count,
                                         T (&to)[kLanes<T> * kNarrow<T>]) {
  std::fill_n(to, kLanes<T> * kNarrow<T>, T(0));
  const Rows<T> rows = from.by_rows<T>();
  for (index_t i = 0; i < std::min<index_t>(kLanes<T>, from.rows - row); ++i) {
    T* out = to + i * kNarrow<T>;
    const T* in = rows.read(row + i, first, count, out);
    if (in != out) std::copy_n(in, count, out);
  }
}

template <class T>
[[gnu::noinline]] void write_tile_entries(const T* rows, const MatrixView& to, index_t row, index_t first,
                                          index_t count) {
  for (index_t i = 0; i < std::min<index_t>(kLanes<T>, to.rows - row); ++i) {
    for (index_t c = 0; c < count; ++c) *to.at<T>(row + i, first + c) = rows[i * kNarrow<T> + c];
  }
}

}  // namespace detail

// Entries in order, as the lanes of a tile have them, and the inverse.
template <class T>
inline Vec<T> split_pairs(Vec<T> v) {
  return detail::split_pairs<T>(v, std::make_integer_sequence<int, kLanes<T>>{});
}
template <class T>
inline Vec<T> join_pairs(Vec<T> v) {
  return detail::join_pairs<T>(v, std::make_integer_sequence<int, kLanes<T>>{});
}

// Columns [first, first + kNarrow) of rows [row, row + kLanes); zeros for what the matrix does not have.
template <class T>
[[gnu::always_inline]] inline void read_tile(const MatrixView& from, index_t row, index_t first,
                                             Vec<T> (&columns)[kNarrow<T>]) {
  constexpr index_t lanes = kLanes<T>, narrow = kNarrow<T>;
  const index_t count = std::min(narrow, from.columns - first), rows_left = from.rows - row - lanes;
  if (from.native<T>() && rows_left >= 0) {
    const T* at = from.at<T>(row, first);
    const index_t step = from.row_step;
    if (from.row_step == 1 && from.column_step != 1) {
#pragma GCC unroll 8
      for (index_t c = 0; c < narrow; ++c) {
        columns[c] = c < count ? split_pairs<T>(load(at + c * from.column_step)) : Vec<T>{};
      }
      return;
    }
    // A whole half vector of every row, if all of it lies between entries of the matrix.
    if (from.column_step == 1 && rows_left * step + from.columns - first >= narrow) {
      if (step == narrow) {
#pragma GCC unroll 8
        for (index_t i = 0; i < narrow; ++i) columns[i] = load(at + i * lanes);
      } else {
#pragma GCC unroll 8
        for (index_t i = 0; i < narrow; ++i, at += 2 * step) columns[i] = load_halves(at, at + step);
      }
      transpose_half_squares<T>(columns);
      if (count < narrow) {
#pragma GCC unroll 8
        for (index_t c = 0; c < narrow; ++c) columns[c] = c < count ? columns[c] : Vec<T>{};
      }
      return;
    }
  }
  alignas(kVectorBytes) T entries[lanes * narrow];
  detail::read_tile_entries(from, row, first, count, entries);
  for (index_t i = 0; i < narrow; ++i) columns[i] = load(entries + i * lanes);
  transpose_half_squares<T>(columns);
}

// Bytes from an item to the one after it, which this thread will probably come to next; 0 for the last.
inline index_t bytes_to_next(const TensorView& array, index_t item) {
  if (item + 1 >= batch_count(array, 2)) return 0;
  return static_cast<const char*>(batch_item(array, 2, item + 1)) -
         static_cast<const char*>(batch_item(array, 2, item));
}

// Asks for that item's tile while this one's is computed with, where rows lie close together.
template <class T>
[[gnu::always_inline]] inline void ask_for_next_tile(const MatrixView& from, index_t row, index_t bytes_away) {
  if (bytes_away == 0 || !from.native<T>() || from.column_step != 1 || from.row_step != from.columns) return;
  const char* next = from.data + row * from.row_step * index_t{sizeof(T)} + bytes_away;
  const index_t bytes = kLanes<T> * std::min(from.row_step, kNarrow<T>) * index_t{sizeof(T)};
  for (index_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + i, 0, 2);
}

// The inverse, of a matrix of type T.
template <class T>
[[gnu::always_inline]] inline void write_tile(Vec<T> (&columns)[kNarrow<T>], const MatrixView& to, index_t row,
                                              index_t first) {
  constexpr index_t lanes = kLanes<T>, narrow = kNarrow<T>;
  const index_t count = std::min(narrow, to.columns - first), step = to.row_step;
  const bool whole = row + lanes <= to.rows;
  T* at = to.at<T>(row, first);
  if (whole && to.row_step == 1 && to.column_step != 1) {
    for (index_t c = 0; c < count; ++c) store(at + c * to.column_step, join_pairs<T>(columns[c]));
    return;
  }
  transpose_half_squares<T>(columns);
  if (whole && to.column_step == 1 && count == narrow) {
    if (step == narrow) {
#pragma GCC unroll 8
      for (index_t i = 0; i < narrow; ++i) store(at + i * lanes, columns[i]);
    } else {
#pragma GCC unroll 8
      for (index_t i = 0; i < narrow; ++i, at += 2 * step) store_halves(at, at + step, columns[i]);
    }
    return;
  }
  alignas(kVectorBytes) T entries[lanes * narrow];
  for (index_t i = 0; i < narrow; ++i) store(entries + i * lanes, columns[i]);
  detail::write_tile_entries(entries, to, row, first, count);
}

template <class T>
[[gnu::always_inline]] inline void clear_tile(Vec<T> (&columns)[kNarrow<T>]) {  // GCC fills an array by a slow loop
#pragma GCC unroll 8
  for (index_t c = 0; c < kNarrow<T>; ++c) columns[c] = Vec<T>{};
}

// sums[j] += sum_c columns[c] right[c * kNarrowStep + j]
template <class T>
[[gnu::always_inline]] inline void add_tile_product(const Vec<T> (&columns)[kNarrow<T>], const T* right,
                                                    Vec<T> (&sums)[kNarrow<T>]) {
#pragma GCC unroll 8
  for (index_t c = 0; c < kNarrow<T>; ++c) {
#pragma GCC unroll 8
    for (index_t j = 0; j < kNarrow<T>; ++j) sums[j] += columns[c] * broadcast(right[c * kNarrowStep<T> + j]);
  }
}

// left^T right of two such matrices, every lane and every block of rows for itself, by a team: members add up their
// blocks, and after a barrier one of them the sums of all, in an order that does not depend on the team. The products
// are of the type Sum. Where both operands are one matrix, entries below the diagonal are left out.
template <class Sum, class T>
class NarrowProduct {
 public:
  NarrowProduct(index_t rows, int threads, Workspace& workspace)
      : blocks_(std::max<index_t>(1, (rows + kBlock - 1) / kBlock)),
        sums_(workspace.take<Sum>(blocks_ * kEntries * kLanes<Sum>)),
        chunks_(workspace.take<T>(threads * 2 * kNarrow<T> * kChunk)) {}

  void add(const MatrixView& left, const MatrixView* right, Team team) const {  // right: null for left
    T* chunk = chunks_ + team.rank() * 2 * kNarrow<T> * kChunk;
    for (index_t block = team.rank(); block < blocks_; block += team.size()) {
      Sum* sums = sums_ + block * kEntries * kLanes<Sum>;
      std::fill_n(sums, kEntries * kLanes<Sum>, Sum(0));
      const index_t end = std::min(left.rows, (block + 1) * kBlock);
      for (index_t row = block * kBlock; row < end; row += kChunk) {
        const index_t rows = round_up(std::min(kChunk, end - row), kLanes<T>);
        read_chunk(left, row, rows, chunk);
        if (right) read_chunk(*right, row, rows, chunk + kNarrow<T> * kChunk);
        add_chunk(chunk, right ? chunk + kNarrow<T> * kChunk : chunk, right == nullptr, rows, sums);
      }
    }
  }

  // to[i * step + j], for all of kNarrow x kNarrow, or i <= j.
  void finish(Sum* to, index_t step) const {
    for (index_t i = 0; i < kNarrow<T>; ++i) {
      Vec<Sum> row[kNarrow<T>];
      for (index_t j = 0; j < kNarrow<T>; ++j) {
        row[j] = Vec<Sum>{};
        for (index_t block = 0; block < blocks_; ++block)
          row[j] += load(sums_ + (block * kEntries + i * kNarrow<T> + j) * kLanes<Sum>);
      }
      if constexpr (kLanes<Sum> == kNarrow<T>) {
        transpose_square<Sum>(row);
        for (index_t j = 1; j < kNarrow<T>; ++j) row[0] += row[j];
        store(to + i * step, row[0]);
      } else {
        transpose_half_squares<Sum>(row);
        for (index_t j = 1; j < kNarrow<T>; ++j) row[0] += row[j];
        Sum halves[kLanes<Sum>];
        store(halves, row[0]);
        for (index_t j = 0; j < kNarrow<T>; ++j) to[i * step + j] = halves[j] + halves[kNarrow<T> + j];
      }
    }
  }

 private:
  static constexpr index_t kBlock = 1024, kChunk = 128;
  static constexpr index_t kEntries = kNarrow<T> * kNarrow<T>;
  static constexpr index_t kGroup = std::min<index_t>(4, kNarrow<T>);  // columns whose sums fit into registers
  static_assert(kChunk % kLanes<T> == 0 && kNarrow<T> % kGroup == 0, "whole tiles");

  static void read_chunk(const MatrixView& matrix, index_t row, index_t rows, T* to) {
    const MatrixView from = matrix;  // stores might change what lies in memory
    for (index_t r = 0; r < rows; r += kLanes<T>) {
      Vec<T> columns[kNarrow<T>];
      read_tile<T>(from, row + r, 0, columns);
#pragma GCC unroll 8
      for (index_t c = 0; c < kNarrow<T>; ++c) store(to + c * kChunk + r, columns[c]);
    }
  }

  static Vec<Sum> load_as(const T* from) {
    if constexpr (std::is_same_v<Sum, T>) {
      return load(from);
    } else {
      return detail::load_double(from);
    }
  }

  static void add_chunk(const T* left, const T* right, bool symmetric, index_t rows, Sum* sums) {
    for (index_t i = 0; i < kNarrow<T>; i += kGroup) {
      for (index_t j = symmetric ? i : 0; j < kNarrow<T>; j += kGroup) {
        if (symmetric && i == j) {
          add_group<true>(left + i * kChunk, right + j * kChunk, rows, sums + (i * kNarrow<T> + j) * kLanes<Sum>);
        } else {
          add_group<false>(left + i * kChunk, right + j * kChunk, rows, sums + (i * kNarrow<T> + j) * kLanes<Sum>);
        }
      }
    }
  }

  template <bool symmetric>
  static void add_group(const T* left, const T* right, index_t rows, Sum* sums) {
    Vec<Sum> group[kGroup][kGroup];
#pragma GCC unroll 4
    for (index_t i = 0; i < kGroup; ++i) {
#pragma GCC unroll 4
      for (index_t j = symmetric ? i : 0; j < kGroup; ++j)
        group[i][j] = load(sums + (i * kNarrow<T> + j) * kLanes<Sum>);
    }
    for (index_t r = 0; r < rows; r += kLanes<Sum>) {
      Vec<Sum> own[kGroup], other[kGroup];
#pragma GCC unroll 4
      for (index_t i = 0; i < kGroup; ++i) own[i] = load_as(left + i * kChunk + r);
#pragma GCC unroll 4
      for (index_t j = 0; j < kGroup; ++j) other[j] = symmetric ? own[j] : load_as(right + j * kChunk + r);
#pragma GCC unroll 4
      for (index_t i = 0; i < kGroup; ++i) {
#pragma GCC unroll 4
        for (index_t j = symmetric ? i : 0; j < kGroup; ++j) group[i][j] += own[i] * other[j];
      }
    }
#pragma GCC unroll 4
    for (index_t i = 0; i < kGroup; ++i) {
#pragma GCC unroll 4
      for (index_t j = symmetric ? i : 0; j < kGroup; ++j)
        store(sums + (i * kNarrow<T> + j) * kLanes<Sum>, group[i][j]);
    }
  }

  index_t blocks_;
  Sum* sums_;
  T* chunks_;
};

}  // namespace subspan
