// Products with W = sum_i A_i (x) S_i, or its transpose, for rows x that are fewer than those of S: y = x W^T and dx =
// dy W. Their components are mixed beforehand, which is less work than composing W:
//   y[(p, a)] = sum_i <x'[p, i], S_i[a]> with x'[p, i] = sum_q A[i, p, q] x_q.
//
// Lanes of the micro-kernel are pairs (row of x, p). S is its left operand, read where it lies, each entry once for all
// lanes of a panel.
#pragma once
#include "ops/phm/block_product.h"
#include "ops/phm/mixed_lanes.h"
#include "ops/phm/row_shares.h"

namespace subspan {

// Up to as many rows of x, mixing them takes less time than composing W.
constexpr index_t kMixedRows = 32;

template <class T>
class MixedProduct {
 public:
  MixedProduct(const Factors<T>& factors, bool transposed) : w_(factors), transposed_(transposed) {}

  // y (rows x outputs, packed) = x times the matrix transposed + bias, which may be absent.
  void operator()(const Rows<T>& x, index_t rows, const T* bias, T* y, int threads) const {
    if (rows == 0 || groups() * inner() == 0) return;
    const RowShares shares(rows, threads, 1, (kOwnLanes + groups() - 1) / groups());
    const index_t blocks = (shares.rows() * groups() + kLanesAtOnce - 1) / kLanesAtOnce;
    const index_t block = (shares.rows() + blocks - 1) / blocks;
    const index_t strips = round_up(std::max<index_t>(1, (inner() + kStripRows - 1) / kStripRows), shares.members());
    const index_t strip = round_up((inner() + strips - 1) / strips, kTileRows);
    const index_t mixed = round_up(block * groups(), kPanelWidth<T>) * w_.terms * depth();
    const bool copies = shares.apart() || mixes_alone(mixture().parts, shares.members(), inner());
    Workspace shared;
    T* packed = copies ? nullptr : shared.take<T>(mixed);
    parallel_team(threads, [&](Team all) {
      Workspace own;
      T* operand = copies ? own.take<T>(mixed) : packed;
      MixedLanes<T> lanes(x, mixture(), own);
      T* sums = own.take<T>(round_up(strip, kLanes<T>) * round_up(block * groups(), kPanelWidth<T>));
      T* last = own.take<T>(kTileRows * kDepth);
      std::fill_n(last, kTileRows * kDepth, T(0));
      shares.each(all, [&](index_t begin, index_t end, Team team) {
        for (index_t first = begin; first < end; first += block) {
          const Batch batch{operand, first, std::min(block, end - first) * groups()};
          pack(lanes, batch, copies ? Team() : team);
          if (!copies) team.barrier();
          for (index_t s = team.rank(); s * strip < inner(); s += team.size()) {
            const index_t a = s * strip, count = std::min(strip, inner() - a);
            multiply_strip(batch, a, count, last, sums);
            finish(batch, a, count, sums, bias, y);
          }
          if (!copies) team.barrier();
        }
      });
    });
  }

 private:
  static constexpr index_t kDepth = 256;     // of a block
  static constexpr index_t kStripRows = 64;  // about as many rows of every S_i, or of its transpose, at once
  static constexpr index_t kLanesAtOnce = 480;
  static constexpr index_t kOwnLanes = 32;                                   // for which a member takes rows of its own
  static constexpr index_t kUnit = std::max<index_t>(kLanes<T>, kTileRows);  // of lanes: the narrowest panel

  index_t groups() const { return transposed_ ? w_.q : w_.p; }
  index_t inner() const { return transposed_ ? w_.k : w_.l; }
  index_t depth() const { return transposed_ ? w_.l : w_.k; }

  Mixture<T> mixture() const {
    const index_t row = w_.q * w_.terms;  // of A as (p, q, terms)
    return transposed_ ? Mixture<T>{w_.by_row, w_.terms, row, w_.q, w_.p, w_.terms, w_.l}
                       : Mixture<T>{w_.by_row, row, w_.terms, w_.p, w_.q, w_.terms, w_.k};
  }

  // Pairs of a row of x, from `first` on, and a group, as lanes: panels for every term and block of the depth.
  struct Batch {
    T* packed;
    index_t first, lanes;

    index_t width() const {
      constexpr index_t wide = kPanelWidth<T>, narrow = 2 * kLanes<T>;
      if (kTileVectors<T> <= 2 || round_up(lanes, kUnit) % wide == 0) return wide;
      if (lanes <= kUnit) return kUnit;
      return lanes <= narrow || (lanes % wide <= kLanes<T> && lanes <= 4 * wide) ? narrow : wide;
    }
    index_t padded() const { return round_up(lanes, width()); }
    Panels<T> block(index_t position, index_t part) const { return {packed + position * padded(), part, width()}; }
  };

  void pack(MixedLanes<T>& mixed, const Batch& batch, Team team) const {
    index_t turn = 0;
    for (index_t d = 0; d < depth(); d += kDepth) {
      const index_t part = std::min(kDepth, depth() - d);
      for (index_t lane = 0; lane < batch.lanes; lane += kLanes<T>, ++turn) {
        if (turn % team.size() != team.rank()) continue;
        mixed.pack(batch.first, lane, batch.lanes - lane, d, part, batch.width(),
                   [&](index_t i) { return batch.block(i * depth() + d, part).column(lane); });
      }
    }
  }

  void multiply_strip(const Batch& batch, index_t a, index_t count, T* last, T* sums) const {
    const index_t padded = batch.padded(), whole = count / kTileRows * kTileRows, rest = count - whole;
    const index_t row_entry = transposed_ ? 1 : w_.row_step, depth_step = transposed_ ? w_.row_step : 1;
    if (depth() == 0) std::fill_n(sums, round_up(count, kTileRows) * padded, T(0));
    for (index_t i = 0; i < w_.terms; ++i) {
      for (index_t d = 0; d < depth(); d += kDepth) {
        const index_t part = std::min(kDepth, depth() - d);
        const Panels<T> block = batch.block(i * depth() + d, part);
        const T* left = w_.S + i * w_.term_step + a * row_entry + d * depth_step;
        const bool add = i + d > 0;
        multiply_block(left, row_entry, depth_step, whole, block, batch.lanes, part, add, sums, padded);
        if (rest == 0) continue;
        for (index_t r = 0; r < rest; ++r) {  // tiles are whole, and memory behind S is not ours
          const T* from = left + (whole + r) * row_entry;
          for (index_t k = 0; k < part; ++k) last[r * kDepth + k] = from[k * depth_step];
        }
        multiply_block(last, kDepth, 1, rest, block, batch.lanes, part, add, sums + whole * padded, padded);
      }
    }
  }

  // Squares of sums are transposed: lanes are rows of the result.
  void finish(const Batch& batch, index_t first, index_t count, const T* sums, const T* bias, T* y) const {
    constexpr index_t lanes = kLanes<T>;
    const index_t padded = batch.padded(), outputs = groups() * inner();
    for (index_t m = 0; m < batch.lanes; m += lanes) {
      for (index_t a = 0; a < count; a += lanes) {
        const index_t present = std::min(lanes, count - a), end = std::min(lanes, batch.lanes - m);
        Vec<T> square[lanes];
#pragma GCC unroll 16
        for (index_t i = 0; i < lanes; ++i) square[i] = i < present ? load(sums + (a + i) * padded + m) : Vec<T>{};
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (index_t i = 0; i < lanes; ++i) {
          if (i >= end) break;
          const index_t output = (m + i) % groups() * inner() + first + a;
          const Vec<T> added = bias ? load_first(bias + output, present) : Vec<T>{};
          store_first(y + (batch.first + (m + i) / groups()) * outputs + output, square[i] + added, present);
        }
      }
    }
  }

  const Factors<T>& w_;
  bool transposed_;
};

}  // namespace subspan
