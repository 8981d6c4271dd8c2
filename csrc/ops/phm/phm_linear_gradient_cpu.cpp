#include "core/dispatch.h"
#include "ops/phm/composed_product.h"
#include "ops/phm/mixed_product.h"
#include "ops/phm/phm_linear.h"

namespace subspan {
namespace {

constexpr index_t kDepth = 256;         // rows of x and dy in one product
constexpr index_t kBlockRows = 128;     // about as many rows of dW in a block
constexpr index_t kBlockColumns = 512;  // at most as many columns, if S has them
constexpr index_t kBiasColumns = 256;

// The columns offset ... offset + length - 1 of each of `groups` groups of an array, side by side.
template <class T>
class GroupColumns {
 public:
  GroupColumns(const Rows<T>& rows, index_t groups, index_t group, index_t offset, index_t length, Workspace& workspace)
      : rows_(rows), groups_(groups), group_(group), offset_(offset), length_(length) {
    if (length == group) groups_ = 1, length_ = groups * group;
    line_ = workspace.take<T>(columns() + kPanelWidth<T> + kLanes<T>);
    scratch_ = workspace.take<T>(length_);
    std::fill_n(line_, columns() + kPanelWidth<T> + kLanes<T>, T(0));
  }

  index_t columns() const { return groups_ * length_; }

  // Row first + r at to[r * step].
  void pack(index_t first, index_t count, T* to, index_t step) const {
    for (index_t r = 0; r < count; ++r) copy_row(first + r, to + r * step);
  }

  // The same as panels, which are filled up to their width with anything.
  void pack(index_t first, index_t count, const Panels<T>& to) const {
    for (index_t r = 0; r < count; ++r) {
      copy_row(first + r, line_);
      for (index_t c = 0; c < columns(); c += to.width) {
        T* out = to.panel(c / to.width) + r * to.width;
        for (index_t v = 0; v < to.width; v += kLanes<T>) store(out + v, load(line_ + c + v));
      }
    }
  }

 private:
  void copy_row(index_t row, T* to) const {
    for (index_t g = 0; g < groups_; ++g, to += length_) {
      const T* in = rows_.read(row, g * group_ + offset_, length_, scratch_);
      index_t c = 0;
      for (; c + kLanes<T> <= length_; c += kLanes<T>) store(to + c, load(in + c));
      if (c < length_) store_first(to + c, load_first(in + c, length_ - c), length_ - c);
    }
  }

  const Rows<T>& rows_;
  index_t groups_, group_, offset_, length_;
  T *line_, *scratch_;
};

// dW = dy^T x in blocks of all its sub-matrices, each contracted while it is in the cache.
template <class T>
class FactorGradients {
 public:
  FactorGradients(const Factors<T>& factors, const Rows<T>& x, const Rows<T>& dy, index_t rows)
      : w_(factors), x_(x), dy_(dy), rows_(rows) {
    const index_t a_parts = std::max<index_t>(1, (w_.rows() + kBlockRows - 1) / kBlockRows);
    a_length_ = std::max<index_t>(1, (w_.l + a_parts - 1) / a_parts);
    // All columns of a narrow S, else whole panels.
    const index_t whole = std::clamp<index_t>(kBlockColumns / w_.q / kLanes<T> * kLanes<T>, kLanes<T>, kPanelWidth<T>);
    b_length_ = w_.k <= 64 && w_.columns() <= kBlockColumns ? std::max<index_t>(w_.k, 1) : whole;
    a_blocks_ = (w_.l + a_length_ - 1) / a_length_, b_blocks_ = (w_.k + b_length_ - 1) / b_length_;
  }

  index_t blocks() const { return a_blocks_ * b_blocks_; }

  // dS where block `block` determines it, and the block's share of dA; both may be absent.
  void compute(index_t block, T* dS, T* share) const {
    Workspace workspace;
    SubMatrices<T> dW;
    dW.a0 = block / b_blocks_ * a_length_, dW.a1 = std::min(w_.l, dW.a0 + a_length_);
    dW.b0 = block % b_blocks_ * b_length_, dW.b1 = std::min(w_.k, dW.b0 + b_length_);
    const index_t a_count = dW.a1 - dW.a0, b_count = dW.b1 - dW.b0;
    const GroupColumns<T> left(dy_, w_.p, w_.l, dW.a0, a_count, workspace);
    const GroupColumns<T> right(x_, w_.q, w_.k, dW.b0, b_count, workspace);
    const index_t depth = std::clamp<index_t>(rows_, 1, kDepth);
    const index_t tile_rows = round_up(left.columns(), kTileRows), padded = round_up(right.columns(), kLanes<T>);
    const index_t left_step = tile_rows + kLanes<T>;  // no power of two apart
    T* left_rows = workspace.take<T>(depth * left_step);
    const index_t wide = round_up(right.columns(), kPanelWidth<T>);
    const Panels<T> right_panels{workspace.take<T>(wide * depth), depth, kPanelWidth<T>};
    T* products = workspace.take<T>(tile_rows * padded);
    // An empty sum is one block of depth zero.
    for (index_t r = 0; r == 0 || r < rows_; r += kDepth) {
      const index_t part = std::min(kDepth, rows_ - r);
      left.pack(r, part, left_rows, left_step);
      right.pack(r, part, right_panels);
      multiply_block(left_rows, 1, left_step, left.columns(), right_panels, right.columns(), part, r > 0, products,
                     padded);
    }
    dW.data = products, dW.p_step = a_count * padded, dW.q_step = b_count, dW.row_step = padded;
    if (dS) contract_to_S(dW, w_, dS);
    if (!share) return;
    // Rows of S a power of two apart would push each other out of the cache.
    const index_t row_step = round_up(b_count, kLanes<T>) + kLanes<T>, term_step = a_count * row_step;
    T* S = workspace.take<T>(w_.terms * term_step);
    for (index_t i = 0; i < w_.terms; ++i) {
      for (index_t a = 0; a < a_count; ++a) {
        const T* from = w_.S + i * w_.term_step + (dW.a0 + a) * w_.row_step + dW.b0;
        std::copy_n(from, b_count, S + i * term_step + a * row_step);
      }
    }
    contract_to_A(dW, w_, S, term_step, row_step, share);
  }

 private:
  const Factors<T>& w_;
  const Rows<T>&x_, &dy_;
  index_t rows_, a_length_, b_length_, a_blocks_, b_blocks_;
};

// Sums of columns first ... first + count - 1, in parts of kDepth rows.
template <class T>
void sum_columns(const Rows<T>& dy, index_t rows, index_t first, index_t count, T* sums) {
  T part[kBiasColumns], scratch[kBiasColumns];
  std::fill_n(sums, count, T(0));
  for (index_t r = 0; r < rows; r += kDepth) {
    std::fill_n(part, count, T(0));
    for (index_t i = r; i < std::min(rows, r + kDepth); ++i) {
      const T* in = dy.read(i, first, count, scratch);
      for (index_t c = 0; c < count; ++c) part[c] += in[c];
    }
    for (index_t c = 0; c < count; ++c) sums[c] += part[c];
  }
}

struct Gradients {
  const TensorView &x, &A, &S, &dy;
  const TensorView *dx, *dA, *dS, *dbias;

  template <class T>
  void item(index_t item, int threads) const {
    Workspace workspace;
    const Factors<T> factors(A, S, item, workspace);
    const index_t rows = x.size(-2), outputs = factors.rows();
    const Rows<T> in(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1));
    const Rows<T> upstream(batch_item(dy, 2, item), dy.dtype, dy.step(-2), dy.step(-1));
    if (dx) {
      T* to = dx->ptr<T>() + item * rows * factors.columns();
      if (rows <= kMixedRows) {
        MixedProduct<T>(factors, true)(upstream, rows, nullptr, to, threads);
      } else {
        ComposedProduct<T>(factors, true)(upstream, rows, nullptr, to, threads);
      }
    }
    const FactorGradients<T> gradients(factors, in, upstream, rows);
    const index_t blocks = dA || dS ? gradients.blocks() : 0;
    T* shares = dA ? workspace.take<T>(blocks * factors.coefficients()) : nullptr;
    const index_t bias_parts = dbias ? (outputs + kBiasColumns - 1) / kBiasColumns : 0;
    parallel_for(
        blocks + bias_parts, threads,
        [&](index_t task) {
          if (task < blocks) {
            gradients.compute(task, dS ? dS->ptr<T>() + item * factors.terms * factors.l * factors.k : nullptr,
                              shares ? shares + task * factors.coefficients() : nullptr);
          } else {
            const index_t first = (task - blocks) * kBiasColumns;
            sum_columns(upstream, rows, first, std::min(kBiasColumns, outputs - first),
                        dbias->ptr<T>() + item * outputs + first);
          }
        },
        1);
    if (dA) add_shares(shares, blocks, factors, dA->ptr<T>() + item * factors.coefficients());
  }
};

}  // namespace

void phm_linear_gradient_cpu(const TensorView& x, const TensorView& A, const TensorView& S, const TensorView& dy,
                             const TensorView* dx, const TensorView* dA, const TensorView* dS, const TensorView* dbias,
                             int threads) {
  dispatch_float(A.dtype, "phm_linear_gradient", [&](auto tag) {
    const double flops =
        4.0 * static_cast<double>(x.size(-2)) * static_cast<double>(A.size(-2) * S.size(-2) * x.size(-1));
    const Gradients gradients{x, A, S, dy, dx, dA, dS, dbias};
    for_each_of(batch_count(x, 2), flops, threads,
                [&](index_t item, int own) { gradients.item<typename decltype(tag)::type>(item, own); });
  });
}

}  // namespace subspan
