// Inverses of matrices M whose symmetric part is positive definite, without row exchanges: I - K/2 of a skew K, or the
// small matrices of Woodbury's formula. Two forms of one algorithm: blocked on the micro-kernel, one matrix for a team
// of threads; and interleaved, one matrix per SIMD lane.
//
// Block Gauss-Jordan elimination. Where D is the pivot block of rows and columns B, C the columns B and R the rows B,
//   R <- D^-1 R (with the identity in the place of D),   M <- M - C R on all other rows (with 0 in the place of C),
// is the inverse in place after all blocks, in 2 n^3 operations, all of them products. Every pivot block is a Schur
// complement, whose symmetric part is positive definite as well (Mathias 1992, Matrices with positive definite
// Hermitian part), so it is invertible. Pivots are 2 x 2 at the lowest level: a skew part of size s has the determinant
// 1 + s^2 there, where single pivots 1 would let the rest grow to s^2.
#pragma once
#include "core/gemm.h"
#include "core/small_matrix/interleaved_product.h"
#include "core/workspace.h"

namespace subspan {

constexpr index_t kTinyPivots = 8;  // of the blocks that are inverted entry by entry

namespace detail {

// One pivot pair, rows and columns `first` and `first` + 1 of a, by formula. Entry is a number or a vector of lanes.
template <class Entry>
inline void eliminate_pair(Entry* a, index_t step, index_t size, index_t first) {
  Entry* top = a + first * step;
  Entry* bottom = top + step;
  const Entry p = top[first], q = top[first + 1], r = bottom[first], s = bottom[first + 1];
  const Entry reciprocal = 1 / (p * s - q * r);
  const Entry e00 = s * reciprocal, e01 = -q * reciprocal, e10 = -r * reciprocal, e11 = p * reciprocal;
  top[first] = bottom[first + 1] = Entry{} + 1;
  top[first + 1] = bottom[first] = Entry{};
  for (index_t j = 0; j < size; ++j) {
    const Entry upper = e00 * top[j] + e01 * bottom[j];
    bottom[j] = e10 * top[j] + e11 * bottom[j];
    top[j] = upper;
  }
  for (index_t i = 0; i < size; ++i) {
    if (i == first || i == first + 1) continue;
    Entry* row = a + i * step;
    const Entry c0 = row[first], c1 = row[first + 1];
    row[first] = row[first + 1] = Entry{};
    for (index_t j = 0; j < size; ++j) row[j] -= c0 * top[j] + c1 * bottom[j];
  }
}

template <class Entry>
inline void eliminate_one(Entry* a, index_t step, index_t size, index_t first) {
  Entry* top = a + first * step;
  const Entry reciprocal = 1 / top[first];
  top[first] = Entry{} + 1;
  for (index_t j = 0; j < size; ++j) top[j] *= reciprocal;
  for (index_t i = 0; i < size; ++i) {
    if (i == first) continue;
    Entry* row = a + i * step;
    const Entry c = row[first];
    row[first] = Entry{};
    for (index_t j = 0; j < size; ++j) row[j] -= c * top[j];
  }
}

template <class Entry>
inline void invert_tiny(Entry* a, index_t step, index_t size) {
  index_t first = 0;
  for (; first + 2 <= size; first += 2) eliminate_pair(a, step, size, first);
  if (first < size) eliminate_one(a, step, size, first);
}

}  // namespace detail

// Entries of the work space of invert_interleaved.
constexpr index_t invert_interleaved_work(index_t size) { return (2 * size + kTinyPivots) * kTinyPivots; }

// The interleaved form: a[i * step + j] is entry (i, j) of every lane's matrix, and of its inverse afterwards.
template <class T>
void invert_interleaved(Vec<T>* a, index_t step, index_t size, Vec<T>* work) {
  if (size <= kTinyPivots) return detail::invert_tiny(a, step, size);
  const LaneMatrix<T> matrix{a, step, 1};
  for (index_t first = 0; first < size; first += kTinyPivots) {
    const index_t pivots = std::min(kTinyPivots, size - first);
    const LaneMatrix<T> block{work, pivots, 1};
    const LaneMatrix<T> rows{block.data + kTinyPivots * kTinyPivots, size, 1};
    const LaneMatrix<T> columns{rows.data + kTinyPivots * size, pivots, 1};
    for (index_t i = 0; i < pivots; ++i) {
      for (index_t j = 0; j < pivots; ++j) block(i, j) = matrix(first + i, first + j);
    }
    detail::invert_tiny(block.data, pivots, pivots);
    for (index_t i = 0; i < size; ++i) {
      for (index_t j = 0; j < pivots; ++j) {
        columns(i, j) = matrix(i, first + j);
        matrix(i, first + j) = Vec<T>{};
      }
    }
    for (index_t i = 0; i < pivots; ++i) {
      for (index_t j = 0; j < size; ++j) rows(i, j) = matrix(first + i, j);
      rows(i, first + i) = Vec<T>{} + 1;
    }
    const LaneMatrix<T> solved = matrix.from(first, 0);
    multiply_interleaved(block, pivots, rows, size, pivots,
                         [&](index_t i, index_t j, Vec<T> sum) { solved(i, j) = sum; });
    for (const auto& [begin, end] : {std::pair{index_t(0), first}, std::pair{first + pivots, size}}) {
      const LaneMatrix<T> rest = matrix.from(begin, 0);
      multiply_interleaved(columns.from(begin, 0), end - begin, solved, size, pivots,
                           [&](index_t i, index_t j, Vec<T> sum) { rest(i, j) -= sum; });
    }
  }
}

// A square matrix of padded rows: zero columns up to whole vectors and zero rows up to whole tiles, so that every
// product of two may run over them. Rows are an odd number of cache lines apart: they do not fall into the same sets of
// a cache.
template <class T>
struct PaddedSquare {
  T* data = nullptr;
  index_t size = 0, step = 0;

  static index_t step_of(index_t size) {
    const index_t vectors = (size + kLanes<T> - 1) / kLanes<T>;
    return (vectors > 2 ? vectors | 1 : vectors) * kLanes<T>;
  }
  static index_t elements(index_t size) { return round_up(size, kTileRows) * step_of(size); }
  // What pads it is zero, the rest is to be written.
  static PaddedSquare take(index_t size, Workspace& workspace) {
    const PaddedSquare square{workspace.take<T>(elements(size)), size, step_of(size)};
    if (square.step > size) {
      for (index_t i = 0; i < size; ++i) std::fill(square.row(i) + size, square.row(i + 1), T(0));
    }
    std::fill(square.row(size), square.data + elements(size), T(0));
    return square;
  }
  T* row(index_t i) const { return data + i * step; }
};

enum class Update { kStore, kAdd, kSubtract };

// The finish that updates an array by tiles; whole tiles and vectors must exist there.
template <class T>
struct UpdatePadded {
  T* to;
  index_t step;
  Update update;

  template <int Vectors>
  [[gnu::always_inline]] void ask(index_t row, index_t column, std::integral_constant<int, Vectors>) const {
    if (update == Update::kStore) return;
    const T* target = to + row * step + column;
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i, target += step) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) __builtin_prefetch(target + v * kLanes<T>, 1, 3);
    }
  }
  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
    T* target = to + row * step + column;
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i, target += step) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) {
        T* entries = target + v * kLanes<T>;
        const Vec<T> before = update == Update::kStore ? Vec<T>{} : load(entries);
        store(entries, update == Update::kSubtract ? before - sums[i][v] : before + sums[i][v]);
      }
    }
  }
};

// The rows of whole tiles that are a member's own in all products, and stay in its cache.
template <class Body>
[[gnu::always_inline]] inline void own_rows(index_t rows, Team team, Body&& body) {
  for (index_t first = team.rank() * kTileRows; first < rows; first += team.size() * kTileRows) {
    for (index_t row = first; row < std::min(first + kTileRows, rows); ++row) body(row);
  }
}

// finish(row, column, sums) for the tiles of left right, where entry (i, k) of left lies at left[i * left_row + k *
// left_column] for rows up to whole tiles, and row k of right at right + k * right_step up to whole vectors.
// Tiles of rows are dealt to the team.
template <class T, class Finish>
void multiply_padded(const T* left, index_t left_row, index_t left_column, index_t rows, const T* right,
                     index_t right_step, index_t columns, index_t depth, Team team, Finish&& finish) {
  for (index_t column = 0; column < columns; column += kPanelWidth<T>) {
    const index_t vectors = (std::min<index_t>(kPanelWidth<T>, columns - column) + kLanes<T> - 1) / kLanes<T>;
    with_vectors<T>(vectors, [&](auto count) {
      for (index_t row = team.rank() * kTileRows; row < rows; row += team.size() * kTileRows) {
        Vec<T> sums[kTileRows][count.value];
        if constexpr (std::is_same_v<std::decay_t<Finish>, UpdatePadded<T>>) finish.ask(row, column, count);
        multiply_strided_tile<count.value>(left + row * left_row, left_row, left_column, right + column, right_step,
                                           depth, sums);
        finish(row, column, sums);
      }
    });
  }
}

// Sums of more terms are added up in blocks.
constexpr index_t kLongestSum = 256;

// to = left right, or the opposite of kSubtract, for a right operand of padded rows.
template <class T>
void multiply_into(const PaddedSquare<T>& to, const T* left, index_t left_row, index_t left_column,
                   const PaddedSquare<T>& right, Update update, Team team) {
  for (index_t k = 0; k < right.size; k += kLongestSum) {
    multiply_padded(left + k * left_column, left_row, left_column, to.size, right.row(k), right.step, to.size,
                    std::min(kLongestSum, right.size - k), team, UpdatePadded<T>{to.data, to.step, update});
    if (update == Update::kStore) update = Update::kAdd;
  }
}

// finish(row, column, sums) for the tiles of left right; `work` keeps the sums of all blocks but the last.
template <class T, class Finish>
void multiply_through(const PaddedSquare<T>& work, const T* left, index_t left_row, index_t left_column,
                      const PaddedSquare<T>& right, Team team, Finish&& finish) {
  const index_t last = (right.size - 1) / kLongestSum * kLongestSum;
  multiply_into(work, left, left_row, left_column, PaddedSquare<T>{right.data, last, right.step}, Update::kStore, team);
  multiply_padded(left + last * left_column, left_row, left_column, work.size, right.row(last), right.step, work.size,
                  right.size - last, team, [&](index_t row, index_t column, auto& sums) {
                    if (last > 0) {
                      for (auto& vectors : sums) {
                        const T* before = work.row(row + (&vectors - sums)) + column;
                        for (auto& sum : vectors) sum += load(before + (&sum - vectors) * kLanes<T>);
                      }
                    }
                    finish(row, column, sums);
                  });
}

namespace detail {

// Up to this size pivot pairs are eliminated one after the other.
constexpr index_t kSinglePairs = 32;

// How many pivots go together: products deep enough for the micro-kernel, and pivot blocks that cost little; of large
// matrices, blocks that stay in the cache while they are inverted themselves.
constexpr index_t pivot_width(index_t size) {
  constexpr index_t most = 256;
  if (size <= most) return size <= most / 2 ? kSinglePairs : 2 * kSinglePairs;
  const index_t parts = (size + most - 1) / most;
  return round_up((size + parts - 1) / parts, kSinglePairs);
}

// Blocks that are too small for a team.
constexpr index_t kOneMember = 2 * kSinglePairs;

// The inverse in place, pair after pair. The pivots of a pair lie in the same vector of a row.
template <class T>
void invert_pairs(const PaddedSquare<T>& matrix) {
  constexpr index_t lanes = kLanes<T>;
  const index_t size = matrix.size;
  Vec<T> lane;
  for (index_t i = 0; i < lanes; ++i) lane[i] = static_cast<T>(i);
  for (index_t first = 0; first + 2 <= size; first += 2) {
    T *top = matrix.row(first), *bottom = matrix.row(first + 1);
    const T p = top[first], q = top[first + 1], r = bottom[first], s = bottom[first + 1];
    const T reciprocal = 1 / (p * s - q * r);
    const T e00 = s * reciprocal, e01 = -q * reciprocal, e10 = -r * reciprocal, e11 = p * reciprocal;
    const index_t own = first / lanes * lanes;  // the vector of the pivots
    const Vec<T> at = lane - static_cast<T>(first - own);
    const Mask<T> others = (at < 0) | (at > 1);
    for (index_t j = 0; j < size; j += lanes) {
      Vec<T> upper = load(top + j), lower = load(bottom + j);
      if (j == own) {
        upper = others ? upper : 1 - at;
        lower = others ? lower : at;
      }
      store(top + j, e00 * upper + e01 * lower);
      store(bottom + j, e10 * upper + e11 * lower);
    }
    for (index_t i = 0; i < size; ++i) {
      if (i == first || i == first + 1) continue;
      T* row = matrix.row(i);
      const T c0 = row[first], c1 = row[first + 1];
      for (index_t j = 0; j < size; j += lanes) {
        Vec<T> entries = load(row + j);
        if (j == own) entries = others ? entries : Vec<T>{};
        store(row + j, entries - c0 * load(top + j) - c1 * load(bottom + j));
      }
    }
  }
  if (size % 2 == 1) eliminate_one(matrix.data, matrix.step, size, size - 1);
}

}  // namespace detail

// What invert_padded needs beside the matrix.
template <class T>
index_t invert_padded_work(index_t size) {
  if (size <= detail::kSinglePairs) return 0;
  const index_t width = detail::pivot_width(size);
  return PaddedSquare<T>::elements(width) + width * PaddedSquare<T>::step_of(size) +
         round_up(size, kTileRows) * PaddedSquare<T>::step_of(width) + invert_padded_work<T>(width);
}

// The blocked form, in place. All members of the team call it, with the same work space.
template <class T>
void invert_padded(const PaddedSquare<T>& matrix, T* work, Team team = Team()) {
  const index_t size = matrix.size, step = matrix.step;
  if (size <= detail::kSinglePairs) {
    if (team.rank() == 0) detail::invert_pairs(matrix);
    return team.barrier();
  }
  const index_t width = detail::pivot_width(size), padded_rows = round_up(size, kTileRows);
  const index_t column_step = PaddedSquare<T>::step_of(width);
  T* rows = work + PaddedSquare<T>::elements(width);
  T* columns = rows + width * step;
  T* inner = columns + padded_rows * column_step;
  for (index_t first = 0; first < size; first += width) {
    const index_t pivots = std::min(width, size - first), end = first + pivots;
    const PaddedSquare<T> block{work, pivots, PaddedSquare<T>::step_of(pivots)};
    if (team.rank() == 0) std::fill(block.row(pivots), block.data + PaddedSquare<T>::elements(pivots), T(0));
    const auto copy_block = [&](index_t i) {
      T* to = block.row(i);
      std::fill(std::copy_n(matrix.row(first + i) + first, pivots, to), to + block.step, T(0));
    };
    if (pivots <= detail::kOneMember && team.rank() == 0) {
      for (index_t i = 0; i < pivots; ++i) copy_block(i);
      invert_padded(block, inner);
    }
    // Copies of the pivots' rows and columns, which are overwritten while they are operands.
    own_rows(padded_rows, team, [&](index_t i) {
      T* from = matrix.row(i) + first;
      if (i < first || i >= end) {
        std::copy_n(from, pivots, columns + i * column_step);
        std::fill_n(from, pivots, T(0));
      } else {
        std::copy_n(matrix.row(i), step, rows + (i - first) * step);
        if (pivots > detail::kOneMember) copy_block(i - first);
      }
    });
    team.barrier();
    if (pivots > detail::kOneMember) invert_padded(block, inner, team);
    T* solved = matrix.row(first);
    own_rows(pivots, team, [&](index_t i) { std::copy_n(block.row(i), pivots, matrix.row(first + i) + first); });
    for (const auto& [begin, stop] : {std::pair{index_t(0), first}, std::pair{end, size}}) {
      multiply_padded(block.data, block.step, 1, pivots, rows + begin, step, stop - begin, pivots, team,
                      UpdatePadded<T>{solved + begin, step, Update::kStore});
    }
    team.barrier();
    for (const auto& [begin, stop] : {std::pair{index_t(0), first}, std::pair{end, size}}) {
      multiply_padded(columns + begin * column_step, column_step, 1, stop - begin, solved, step, size, pivots, team,
                      UpdatePadded<T>{matrix.row(begin), step, Update::kSubtract});
    }
    team.barrier();
  }
}

}  // namespace subspan
