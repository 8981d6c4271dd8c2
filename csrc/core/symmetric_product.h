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
  Vec<T> square[lanes];
  for (index_t i = team.rank() * lanes; i < to.size; i += team.size() * lanes) {
    const index_t rows = std::min(lanes, to.size - i);
    for (index_t j = i; j < to.size; j += lanes) {
      T* upper = to.panels.at(i, j);
      for (index_t r = 0; r < lanes; ++r) {
        square[r] = combination.scale != 0 ? load(upper + r * width) * combination.scale : Vec<T>{};
      }
      if (combination.other) {
        const T* other = combination.other->panels.at(i, j);
        for (index_t r = 0; r < lanes; ++r) square[r] += load(other + r * width) * combination.weight;
      }
      if (i == j) {
        for (index_t r = 0; r < rows; ++r) square[r][r] += combination.diagonal;
        Vec<T> mirrored[lanes];
        for (index_t r = 0; r < lanes; ++r) mirrored[r] = square[r];
        transpose_square<T>(mirrored);
        for (index_t r = 0; r < lanes; ++r) {
          for (index_t c = 0; c < r; ++c) square[r][c] = mirrored[r][c];
        }
      }
      for (index_t r = 0; r < lanes; ++r) store(upper + r * width, square[r]);
      if (i != j) {
        transpose_square<T>(square);
        for (index_t r = 0; r < lanes; ++r) store(to.panels.at(j + r, i), square[r]);
      }
    }
  }
}

// About the spectral norm, by a few steps of the power method from `vectors`, 2 * round_up(size, kLanes) entries: not
// below size^(-1/(2 steps)) of it. All members return the same number.
template <class T>
double estimate_norm(const Symmetric<T>& matrix, T* vectors, Team team) {
  constexpr int steps = 3;
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
    for (index_t row = team.rank(); row < matrix.size; row += team.size()) {
      Vec<T> sum{};
      for (index_t first = 0; first < padded; first += width) {
        const T* entries = matrix.panels.at(row, first);
        const index_t end = std::min(width, padded - first);
        for (index_t c = 0; c < end; c += kLanes<T>) sum += load(entries + c) * load(from + first + c);
      }
      T total = 0;
      for (index_t lane = 0; lane < kLanes<T>; ++lane) total += sum[lane];
      to[row] = total;
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
