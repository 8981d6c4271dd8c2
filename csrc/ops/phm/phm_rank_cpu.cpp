#include "core/dispatch.h"
#include "core/pack.h"
#include "ops/phm/block_product.h"
#include "ops/phm/factors.h"
#include "ops/phm/phm_rank.h"
#include "ops/phm/row_shares.h"

namespace subspan {
namespace {

constexpr index_t kDepth = 256;      // of a block
constexpr index_t kStrip = 512;      // about as many rows of all T_r in a block
constexpr index_t kBatchRows = 256;  // rows of x for which a block is composed once
// Rows of x, per term to be mixed, for which every member reads or composes all blocks for itself. Matrices that are
// only read take longer to come from memory twice than packed rows from another core.
constexpr index_t kOwnRows = 64;

// What is mixed is read from as many places as there are terms, and goes to as many as there are r: their distances
// would be powers of two, and all of them in one set of a cache.
template <class T>
constexpr index_t kPadding = kLanes<T>;

// One batch item. Lanes of the micro-kernel are rows of x, as in ComposedProduct.
template <class T>
struct Item {
  Rows<T> x;
  index_t rows, p, q, rank, terms, l, k;
  bool transposed;
  const T* S;  // columns are neighbours
  index_t term_step, row_step;
  const T *P, *V, *U;  // (p, rank), (rank, q), (rank, terms) or absent
  const T* bias;
  T* y;

  index_t inner() const { return transposed ? k : l; }  // rows of T_r, or of its transpose
  index_t depth() const { return transposed ? l : k; }

  // Rows of x that are lanes together, mixed for every r: blocks of the depth, in each the panels of every r.
  struct Batch {
    T* mixed;
    index_t first, count, width, padded, rank;

    Panels<T> block(index_t k, index_t depth, index_t r) const {
      return {mixed + k / kDepth * block_size() + r * apart(depth), depth, width};
    }
    index_t apart(index_t depth) const { return depth * padded + kPadding<T>; }  // of neighbouring r
    index_t block_size() const { return rank * apart(kDepth); }
  };

  // Rows first ... first + count - 1 of every T_r, those of neighbouring r `apart`, and `spacing` rows of sums.
  struct Strip {
    T* data;
    T* sums;
    index_t spacing, step, apart, first, count;
  };

  void compute(int threads) const {
    if (rows == 0 || p * inner() == 0) return;
    const RowShares shares(rows, threads, kLanes<T>, U ? kOwnRows * terms : kOwnRows);
    const index_t blocks = (shares.rows() + kBatchRows - 1) / kBatchRows;
    const index_t block = (shares.rows() + blocks - 1) / blocks;
    const index_t width = block <= kLanes<T> ? kLanes<T> : std::min(2 * kLanes<T>, kPanelWidth<T>);
    const index_t padded = round_up(block, width);
    const index_t strips = round_up(std::max<index_t>(1, (rank * inner() + kStrip - 1) / kStrip), shares.members());
    const index_t even = (inner() + strips - 1) / strips;
    const index_t strip = even < kLanes<T> ? even : round_up(even, kLanes<T>);  // whole squares
    Workspace shared;
    const index_t batch_size = (depth() + kDepth - 1) / kDepth * rank * (kDepth * padded + kPadding<T>);
    T* common = shares.apart() ? nullptr : shared.take<T>(batch_size);
    parallel_team(threads, [&](Team all) {
      Workspace own;
      T* mixed = shares.apart() ? own.take<T>(batch_size) : common;
      Strip work;
      work.spacing = round_up(strip, kTileRows);
      work.step = transposed ? rank * work.spacing + kLanes<T> : std::min(kDepth, std::max<index_t>(depth(), 1));
      work.apart = transposed ? work.spacing : work.spacing * work.step + kPadding<T>;
      work.data = own.take<T>(transposed ? kDepth * work.step : rank * work.apart);
      work.sums = own.take<T>((rank * work.spacing + kLanes<T>)*padded);
      T* scratch = own.take<T>(q * (kDepth * width + kPadding<T>));
      shares.each(all, [&](index_t begin, index_t end, Team team) {
        for (index_t first = begin; first < end; first += block) {
          const Batch batch{mixed, first, std::min(block, end - first), width, padded, rank};
          pack(batch, scratch, team);
          team.barrier();
          for (index_t s = team.rank(); s * strip < inner(); s += team.size()) {
            work.first = s * strip, work.count = std::min(strip, inner() - work.first);
            multiply(batch, work);
            finish(batch, work);
          }
          team.barrier();
        }
      });
    });
  }

  void pack(const Batch& batch, T* scratch, Team team) const {
    index_t turn = 0;
    for (index_t d = 0; d < depth(); d += kDepth) {
      const index_t part = std::min(kDepth, depth() - d), size = part * batch.width;
      const index_t apart = size + kPadding<T>;
      for (index_t b = 0; b < batch.count; b += batch.width, ++turn) {
        if (turn % team.size() != team.rank()) continue;
        for (index_t c = 0; c < q; ++c) {
          const Panels<T> panel{scratch + c * apart, part, batch.width};
          pack_rows(x, batch.first + b, std::min(batch.width, batch.count - b), c * depth() + d, part, panel);
        }
        mix_rows(scratch, apart, q, V, rank, size, batch.block(d, part, 0).column(b), batch.apart(part));
      }
    }
  }

  void compose(const Strip& strip, index_t d, index_t part) const {
    const index_t count = transposed ? part : strip.count, length = transposed ? strip.count : part;
    for (index_t row = 0; row < count; ++row) {
      const T* from = S + ((transposed ? d : strip.first) + row) * row_step + (transposed ? strip.first : d);
      T* to = strip.data + row * strip.step;
      if (U) {
        mix_rows(from, term_step, terms, U, rank, length, to, strip.apart);
      } else {
        for (index_t r = 0; r < rank; ++r) std::copy_n(from + r * term_step, length, to + r * strip.apart);
      }
    }
  }

  void multiply(const Batch& batch, const Strip& strip) const {
    const bool in_place = !U && !transposed && strip.count % kTileRows == 0;  // whole tiles, whose lines are read once
    // An empty sum is one block of depth zero.
    for (index_t d = 0; d == 0 || d < depth(); d += kDepth) {
      const index_t part = std::min(kDepth, depth() - d);
      if (!in_place) compose(strip, d, part);
      for (index_t r = 0; r < rank; ++r) {
        const T* left = in_place ? S + r * term_step + strip.first * row_step + d : strip.data + r * strip.apart;
        const index_t step = in_place ? row_step : strip.step;
        multiply_block(left, transposed ? 1 : step, transposed ? step : 1, strip.count, batch.block(d, part, r),
                       batch.count, part, d > 0, strip.sums + r * strip.spacing * batch.padded, batch.padded);
      }
    }
  }

  // squares[g][i] = sum_r weights[g * rank + r] in[r * apart + i * step] for `Groups` neighbouring outputs, which share
  // what is loaded; rows that do not exist give anything.
  template <int Groups>
  void mix_squares(const T* in, index_t apart, index_t step, const T* weights, Vec<T> (*squares)[kLanes<T>]) const {
#if defined(__AVX512F__)
    constexpr int kRows = 4;  // at once
#else
    constexpr int kRows = 2;
#endif
    for (index_t i = 0; i < kLanes<T>; i += kRows) {
      Vec<T> sums[Groups][kRows] = {};
      const T* from = in + i * step;
      for (index_t r = 0; r < rank; ++r, from += apart) {
        Vec<T> loaded[kRows];
#pragma GCC unroll 4
        for (int j = 0; j < kRows; ++j) loaded[j] = load(from + j * step);
#pragma GCC unroll 4
        for (int g = 0; g < Groups; ++g) {
          const Vec<T> weight = broadcast(weights[g * rank + r]);
#pragma GCC unroll 4
          for (int j = 0; j < kRows; ++j) sums[g][j] += loaded[j] * weight;
        }
      }
#pragma GCC unroll 4
      for (int g = 0; g < Groups; ++g) {
#pragma GCC unroll 4
        for (int j = 0; j < kRows; ++j) squares[g][i + j] = sums[g][j];
      }
    }
  }

  // Mixtures of the products, with rows of x as lanes: squares of them are transposed.
  void finish(const Batch& batch, const Strip& strip) const {
    constexpr int most = 4;  // outputs that share what is loaded
    for (index_t a = 0; a < strip.count; a += kLanes<T>) {
      for (index_t b = 0; b < batch.count; b += kLanes<T>) {
        const T* sums = strip.sums + a * batch.padded + b;
        const index_t apart = strip.spacing * batch.padded;
        Vec<T> squares[most][kLanes<T>];
        for (index_t g = 0; g < p;) {
          const int groups = p - g >= most ? most : 1;
          if (groups == most) {
            mix_squares<most>(sums, apart, batch.padded, P + g * rank, squares);
          } else {
            mix_squares<1>(sums, apart, batch.padded, P + g * rank, squares);
          }
          for (int part = 0; part < groups; ++part, ++g) write(batch, b, g, strip, a, squares[part]);
        }
      }
    }
  }

  void write(const Batch& batch, index_t b, index_t g, const Strip& strip, index_t a,
             Vec<T> (&square)[kLanes<T>]) const {
    constexpr index_t lanes = kLanes<T>;
    const index_t outputs = p * inner(), output = g * inner() + strip.first + a;
    const index_t present = std::min(lanes, strip.count - a), count = std::min(lanes, batch.count - b);
    const Vec<T> added = bias ? load_first(bias + output, present) : Vec<T>{};
    transpose_square<T>(square);
    T* to = y + (batch.first + b) * outputs + output;
#pragma GCC unroll 16
    for (index_t i = 0; i < lanes; ++i) {
      if (i >= count) break;
      store_first(to + i * outputs, bias ? square[i] + added : square[i], present);
    }
  }
};

// A packed copy of a small matrix, or of its transpose.
template <class T>
const T* copy_matrix(const TensorView& view, index_t item, bool transpose, Workspace& workspace) {
  const index_t rows = view.size(-2), columns = view.size(-1);
  const T* from = static_cast<const T*>(batch_item(view, 2, item));
  T* copy = workspace.take<T>(rows * columns);
  for (index_t r = 0; r < rows; ++r) {
    for (index_t c = 0; c < columns; ++c) {
      copy[transpose ? c * rows + r : r * columns + c] = from[r * view.step(-2) + c * view.step(-1)];
    }
  }
  return copy;
}

}  // namespace

void phm_rank_cpu(const TensorView& x, const TensorView& P, const TensorView& V, const TensorView* U,
                  const TensorView& S, const TensorView* bias, const TensorView& y, bool transposed, int threads) {
  dispatch_float(S.dtype, "phm_rank", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t rows = x.size(-2), outputs = P.size(-2) * S.size(transposed ? -1 : -2);
    const double flops = 2.0 * static_cast<double>(rows * P.size(-1)) * static_cast<double>(S.size(-2) * S.size(-1));
    for_each_of(batch_count(x, 2), flops, threads, [&](index_t item, int own) {
      Workspace workspace;
      T* added = nullptr;
      if (bias) {
        const T* from = static_cast<const T*>(batch_item(*bias, 1, item));
        added = workspace.take<T>(outputs);
        for (index_t o = 0; o < outputs; ++o) added[o] = from[o * bias->step(-1)];
      }
      const Rows<T> in(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1));
      const Matrices<T> weights(S, item, workspace);
      const Item<T> one{in,
                        rows,
                        P.size(-2),
                        V.size(-2),
                        P.size(-1),
                        S.size(-3),
                        S.size(-2),
                        S.size(-1),
                        transposed,
                        weights.data,
                        weights.term_step,
                        weights.row_step,
                        copy_matrix<T>(P, item, false, workspace),
                        copy_matrix<T>(V, item, true, workspace),
                        U ? copy_matrix<T>(*U, item, true, workspace) : nullptr,
                        added,
                        y.ptr<T>() + item * rows * outputs};
      one.compute(own);
    });
  });
}

}  // namespace subspan
