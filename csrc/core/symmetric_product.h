// Products of symmetric matrices that commute, such as polynomials in one matrix: they are symmetric as well, and only
// the tiles of their upper triangles are computed, half of the work.
#pragma once
#include <cmath>
#include <cstdint>
#include <utility>

#include "core/gemm.h"
#include "core/workspace.h"

namespace subspan {

// Sums are formed in blocks of this many terms: half the rounding errors of long sums, at no measurable cost.
constexpr index_t kSumBlock = 128;

// size x size in panels, both triangles. What pads the rows is never read, what pads the columns is zero.
template <class T>
struct Symmetric {
  Panels<T> panels;
  index_t size = 0;

  static Symmetric take(index_t size, Workspace& workspace) {
    const index_t depth = round_up(size, std::max<index_t>(kLanes<T>, kTileRows));
    return {{workspace.take<T>(panel_elements<T>(depth, size)), depth, panel_width<T>(size)}, size};
  }
  T& operator()(index_t row, index_t column) const { return *panels.at(row, column); }
  // Without its first `row` rows, as an operand of a block of a product.
  Panels<T> from_row(index_t row) const { return {panels.data + row * panels.width, panels.depth, panels.width}; }
};

// What a complete matrix is made of: scale * product + weight * other + diagonal * I. Scale 0 leaves the product out.
template <class T>
struct Combination {
  T scale = 1;
  const Symmetric<T>* other = nullptr;
  T weight = 0, diagonal = 0;
};

// The upper triangle of left * right into `to`, which is neither of them. The team must wait afterwards.
template <class T>
void multiply_commuting(const Symmetric<T>& left, const Symmetric<T>& right, const Symmetric<T>& to, Team team) {
  for (index_t k = 0; k < left.size; k += kSumBlock) {
    multiply(left.from_row(k), left.size, right.from_row(k), left.size, std::min(kSumBlock, left.size - k),
             Part::kUpper, team, StorePanels<T>{to.panels, k > 0, T(1)});
  }
}

// Completes a matrix whose upper triangle is known: squares of kLanes x kLanes entries are combined and mirrored. The
// team must wait afterwards.
template <class T>
void complete_symmetric(const Symmetric<T>& to, const Combination<T>& combination, Team team) {
  constexpr index_t lanes = kLanes<T>;
  const index_t width = to.panels.width;
  const index_t size = to.size;  // stores might change what `to` holds
  const bool changes = combination.scale != 1 || combination.other;
  Vec<T> square[lanes], lane;
  for (index_t c = 0; c < lanes; ++c) lane[c] = static_cast<T>(c);
  for (index_t i = team.rank() * lanes; i < size; i += team.size() * lanes) {
    T* lower = to.panels.at(i, i);  // the blocks below the diagonal: i is a column there
    for (index_t j = i; j < size; j += lanes, lower += lanes * width) {
      T* upper = to.panels.at(i, j);
#pragma GCC unroll 16
      for (index_t r = 0; r < lanes; ++r) square[r] = load(upper + r * width);
      if (changes) {
        const T scale = combination.scale;
#pragma GCC unroll 16
        for (index_t r = 0; r < lanes; ++r) square[r] = scale != 0 ? square[r] * scale : Vec<T>{};
      }
      if (combination.other) {
        const T* other = combination.other->panels.at(i, j);
        const T weight = combination.weight;
#pragma GCC unroll 16
        for (index_t r = 0; r < lanes; ++r) square[r] += load(other + r * width) * weight;
      }
      if (i == j) {
        Vec<T> mirrored[lanes];
        for (index_t r = 0; r < lanes; ++r) {
          square[r] += lane == static_cast<T>(r) ? broadcast(combination.diagonal) : Vec<T>{};
          mirrored[r] = square[r];
        }
        transpose_square<T>(mirrored);
        for (index_t r = 0; r < lanes; ++r) square[r] = lane < static_cast<T>(r) ? mirrored[r] : square[r];
      }
      if (changes || i == j) {
#pragma GCC unroll 16
        for (index_t r = 0; r < lanes; ++r) store(upper + r * width, square[r]);
      }
      if (i == j) continue;
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (index_t r = 0; r < lanes; ++r) store(lower + r * width, square[r]);
    }
  }
}

// About the spectral norm, by a few steps of the power method from `vectors`, 2 * round_up(size, kLanes) entries: not
// below size^(-1/(2 steps)) of it. All members return the same number.
template <class T>
double estimate_norm(const Symmetric<T>& matrix, T* vectors, Team team) {
  constexpr int steps = 3;
  constexpr index_t lanes = kLanes<T>;
  const index_t padded = round_up(matrix.size, kLanes<T>), width = matrix.panels.width;
  T *from = vectors, *to = vectors + padded;
  if (team.rank() == 0) {
    for (index_t i = 0; i < padded; ++i) {  // signs without a pattern
      const bool negative = (static_cast<std::uint32_t>(i) * 2654435761u >> 16) & 1;
      from[i] = i < matrix.size ? (negative ? T(-1) : T(1)) : T(0);
      to[i] = 0;
    }
  }
  team.barrier();
  double before = static_cast<double>(matrix.size), norm = 0;
  for (int step = 0; step < steps; ++step) {
    // Rows whose sums fill a vector; those beyond the size, which the panels hold, are not kept.
    for (index_t row = team.rank() * lanes; row < matrix.size; row += team.size() * lanes) {
      Vec<T> sums[lanes] = {};
      for (index_t first = 0; first < padded; first += width) {
        const index_t end = std::min(width, padded - first);
        for (index_t c = 0; c < end; c += lanes) {
          const T* entries = matrix.panels.at(row, first) + c;
          const Vec<T> factors = load(from + first + c);
#pragma GCC unroll 16
          for (index_t r = 0; r < lanes; ++r) sums[r] += load(entries + r * width) * factors;
        }
      }
      transpose_square<T>(sums);
      for (index_t step = lanes / 2; step > 0; step /= 2) {
        for (index_t r = 0; r < step; ++r) sums[r] += sums[r + step];
      }
      const index_t present = std::min(lanes, matrix.size - row);
      for (index_t r = 0; r < present; ++r) to[row + r] = sums[0][r];
    }
    team.barrier();
    double after = 0;
    for (index_t i = 0; i < matrix.size; ++i) after += static_cast<double>(to[i]) * static_cast<double>(to[i]);
    norm = std::sqrt(after / before);
    before = after;
    std::swap(from, to);
    team.barrier();
  }
  return norm;
}

}  // namespace subspan
