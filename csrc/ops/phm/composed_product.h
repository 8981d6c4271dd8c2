// Products with W = sum_i A_i (x) S_i, or its transpose, whose blocks are composed in the cache: y = x W^T and dx = dy
// W.
//
// Lanes of the micro-kernel are rows of x, so that a block of W is its left operand, which is broadcast entry by entry
// and read in any layout: composed rows need no transposition. A strip of W keeps a range of rows of S with all p (for
// the transpose: of columns with all q), since these are mixtures of the same entries of S.
#pragma once
#include "core/pack.h"
#include "ops/phm/block_product.h"
#include "ops/phm/factors.h"
#include "ops/phm/row_shares.h"

namespace subspan {

constexpr index_t kComposedDepth = 256;  // of a block
constexpr index_t kStripRows = 128;      // about as many rows of W, or of its transpose, in a block
constexpr index_t kBatchRows = 480;      // rows of x for which a block is composed once
constexpr index_t kRowsPerTerm = 32;     // rows of x per term of A for which every member composes all of W

template <class T>
class ComposedProduct {
 public:
  ComposedProduct(const Factors<T>& factors, bool transposed) : w_(factors), transposed_(transposed) {}

  index_t groups() const { return transposed_ ? w_.q : w_.p; }
  index_t inner() const { return transposed_ ? w_.k : w_.l; }
  index_t depth() const { return transposed_ ? w_.rows() : w_.columns(); }

  // y (rows x outputs, packed) = x times the matrix transposed + bias, which may be absent.
  void operator()(const Rows<T>& x, index_t rows, const T* bias, T* y, int threads) const {
    if (rows == 0 || groups() * inner() == 0) return;
    const RowShares shares(rows, threads, kLanes<T>, kRowsPerTerm * w_.terms);
    const index_t blocks = (shares.rows() + kBatchRows - 1) / kBatchRows;
    const index_t block = (shares.rows() + blocks - 1) / blocks;
    const index_t widest = round_up(block, kPanelWidth<T>);
    const index_t wanted = round_up((groups() * inner() + kStripRows - 1) / kStripRows, shares.members());
    const index_t strips = std::max<index_t>(1, wanted), strip = (inner() + strips - 1) / strips;
    Workspace shared;
    T* packed = shares.apart() ? nullptr : shared.take<T>(widest * depth());
    parallel_team(threads, [&](Team all) {
      Workspace own;
      T* operand = shares.apart() ? own.take<T>(widest * depth()) : packed;
      Strip work;
      work.rows = round_up(groups() * strip, kTileRows);
      work.step = transposed_ ? work.rows + kLanes<T> : kComposedDepth;  // no power of two apart
      work.data = own.take<T>(transposed_ ? kComposedDepth * work.step : work.rows * kComposedDepth);
      work.sums = own.take<T>(round_up(work.rows, kLanes<T>) * widest);
      shares.each(all, [&](index_t begin, index_t end, Team team) {
        for (index_t first = begin; first < end; first += block) {
          const Batch batch{operand, first, std::min(block, end - first)};
          pack(x, batch, team);
          team.barrier();
          for (index_t s = team.rank(); s * strip < inner(); s += team.size()) {
            work.first = s * strip, work.count = std::min(strip, inner() - work.first);
            multiply_strip(batch, work);
            finish(batch, work, bias, y);
          }
          team.barrier();
        }
      });
    });
  }

 private:
  // Panels of rows of x as lanes; narrower ones where they waste fewer.
  struct Batch {
    T* packed;
    index_t first, count;

    index_t width() const {
      constexpr index_t wide = kPanelWidth<T>, narrow = 2 * kLanes<T>;
      if (kTileVectors<T> <= 2 || round_up(count, kLanes<T>) % wide == 0) return wide;
      return count <= kLanes<T> ? kLanes<T> : (count % wide <= kLanes<T> && count <= 4 * wide) ? narrow : wide;
    }
    index_t padded() const { return round_up(count, width()); }
    Panels<T> block(index_t k, index_t depth) const { return {packed + k * padded(), depth, width()}; }
  };

  // Rows (g, first ... first + count - 1) of the matrix for every g, g outermost.
  struct Strip {
    T* data;  // a block of the rows: packed, or, for the transpose, with these rows as columns
    index_t step, rows;
    T* sums;  // (rows, padded lanes)
    index_t first, count;
  };

  void pack(const Rows<T>& x, const Batch& batch, Team team) const {
    index_t turn = 0;
    for (index_t k = 0; k < depth(); k += kComposedDepth) {
      const index_t part = std::min(kComposedDepth, depth() - k);
      const Panels<T> to = batch.block(k, part);
      for (index_t r = 0; r < batch.count; r += to.width, ++turn) {
        if (turn % team.size() != team.rank()) continue;
        const Panels<T> panel{to.column(r), part, to.width};
        pack_rows(x, batch.first + r, std::min(to.width, batch.count - r), k, part, panel);
      }
    }
  }

  void compose(const Strip& strip, index_t k0, index_t depth) const {
    if (transposed_) {
      for (index_t k = 0; k < depth; ++k) {
        const index_t row = (k0 + k) / w_.l, a = (k0 + k) % w_.l;
        mix_rows(w_.S + a * w_.row_step + strip.first, w_.term_step, w_.terms, w_.by_row + row * w_.q * w_.terms, w_.q,
                 strip.count, strip.data + k * strip.step, strip.count);
      }
      return;
    }
    for (index_t a = 0; a < strip.count; ++a) {
      for (index_t k = 0; k < depth;) {
        const index_t column = (k0 + k) / w_.k, b = (k0 + k) % w_.k;
        const index_t run = std::min(depth - k, w_.k - b);
        mix_rows(w_.S + (strip.first + a) * w_.row_step + b, w_.term_step, w_.terms,
                 w_.by_column + column * w_.p * w_.terms, w_.p, run, strip.data + a * strip.step + k,
                 strip.count * strip.step);
        k += run;
      }
    }
  }

  void multiply_strip(const Batch& batch, const Strip& strip) const {
    const index_t rows = groups() * strip.count, padded = batch.padded();
    const index_t row_entry = transposed_ ? 1 : strip.step, depth_step = transposed_ ? strip.step : 1;
    // An empty sum is one block of depth zero.
    for (index_t k = 0; k == 0 || k < depth(); k += kComposedDepth) {
      const index_t part = std::min(kComposedDepth, depth() - k);
      compose(strip, k, part);
      multiply_block(strip.data, row_entry, depth_step, rows, batch.block(k, part), batch.count, part, k > 0,
                     strip.sums, padded);
    }
  }

  // Sums have rows of x as lanes: squares of them are transposed.
  void finish(const Batch& batch, const Strip& strip, const T* bias, T* y) const {
    constexpr index_t lanes = kLanes<T>;
    const index_t padded = batch.padded(), outputs = groups() * inner();
    for (index_t g = 0; g < groups(); ++g) {
      for (index_t a = 0; a < strip.count; a += lanes) {
        const index_t present = std::min(lanes, strip.count - a), output = g * inner() + strip.first + a;
        const T* in = strip.sums + (g * strip.count + a) * padded;
        const Vec<T> added = bias ? load_first(bias + output, present) : Vec<T>{};
        for (index_t r = 0; r < batch.count; r += lanes) {
          Vec<T> square[lanes];
#pragma GCC unroll 16
          for (index_t i = 0; i < lanes; ++i) square[i] = i < present ? load(in + i * padded + r) : Vec<T>{};
          transpose_square<T>(square);
          T* to = y + (batch.first + r) * outputs + output;
          const index_t count = std::min(lanes, batch.count - r);
#pragma GCC unroll 16
          for (index_t i = 0; i < lanes; ++i) {
            if (i >= count) break;
            store_first(to + i * outputs, bias ? square[i] + added : square[i], present);
          }
        }
      }
    }
  }

  const Factors<T>& w_;
  bool transposed_;
};

}  // namespace subspan
