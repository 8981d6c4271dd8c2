#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/product.h"
#include "ops/angles/basis_rows.h"
#include "ops/angles/subspace_logits.h"

namespace subspan {
namespace {

constexpr index_t kStripRows = 256;  // of x, the longest sum of d_W that is kept in registers
constexpr index_t kChunkRows = 128;  // of the bases, the longest sum of d_x

// Stores or adds tiles of rows c k + i into the (classes, n, k) layout: the entries of a basis vector are k apart.
template <class T>
struct StoreColumns {
  T* data;  // of the first class
  index_t rank, length;
  index_t rows;  // how many of the tiles' rows exist
  bool add;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
    if constexpr (kTransposesTiles<T>) {
      if (rank % kTileRows == 0 && column + Vectors * kLanes<T> <= length) {
        T* to = data + row / rank * rank * length + column * rank + row % rank;
        for (int v = 0; v < Vectors; ++v, to += kLanes<T> * rank) {
          Vec<T> tile[kTileRows];
          for (int i = 0; i < kTileRows; ++i) tile[i] = sums[i][v];
          store_transposed(tile, to, rank, add);
        }
        return;
      }
    }
    T tile[kTileRows][Vectors * kLanes<T>];
    for (int i = 0; i < kTileRows; ++i) {
      for (int v = 0; v < Vectors; ++v) store(tile[i] + v * kLanes<T>, sums[i][v]);
    }
    const index_t entries = std::min<index_t>(Vectors * kLanes<T>, length - column);
    for (index_t i = 0; i < std::min<index_t>(kTileRows, rows - row); ++i) {
      T* to = data + (row + i) / rank * rank * length + column * rank + (row + i) % rank;
      for (index_t j = 0; j < entries; ++j) to[j * rank] = (add ? to[j * rank] : T(0)) + tile[i][j];
    }
  }
};

// A row-major operand with whole vectors in every row: the caller's memory, or a copy of it.
template <class T>
struct RightOperand {
  const T* data = nullptr;
  index_t step = 0;
};

// <x, y> in double, in one order for every number of threads.
template <class T>
double inner_product(const T* x, const T* y, index_t length) {
  double sums[kLanes<T>] = {}, total = 0;
  index_t j = 0;
  for (; j + kLanes<T> <= length; j += kLanes<T>) {
    for (int i = 0; i < kLanes<T>; ++i) sums[i] += static_cast<double>(x[j + i]) * static_cast<double>(y[j + i]);
  }
  for (; j < length; ++j) total += static_cast<double>(x[j]) * static_cast<double>(y[j]);
  for (double sum : sums) total += sum;
  return total;
}

// One batch item: strips of rows of x, in them chunks of whole classes. The coefficients u of a chunk are computed once
// and are the left operand of both gradients.
template <class T>
class Item {
 public:
  Item(const TensorView& x, const TensorView& W, const TensorView& projections, const TensorView& upstream,
       index_t item, T* d_x, T* d_W, const SubspaceGradientParameters& parameters)
      : basis_(W, item),
        x_(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1)),
        projections_(batch_item(projections, 2, item), projections.dtype, projections.step(-2), projections.step(-1)),
        upstream_(static_cast<const T*>(batch_item(upstream, 2, item))),
        upstream_row_(upstream.step(-2)),
        upstream_class_(upstream.step(-1)),
        rows_(x.size(-2)),
        d_x_(d_x),
        d_W_(d_W),
        parameters_(parameters) {
    const bool whole_vectors = basis_.length() % kLanes<T> == 0;
    if (x_.in_place() && whole_vectors) x_in_place_ = {static_cast<const T*>(batch_item(x, 2, item)), x.step(-2)};
    basis_in_place_ = basis_.native() && basis_.evenly_spaced() && basis_.entry_step() == 1 && whole_vectors;
  }

  void run(int threads) {
    const index_t rank = basis_.rank(), classes = std::clamp<index_t>(kChunkRows / rank, 1, basis_.classes());
    const index_t strip = std::min(rows_, kStripRows), padded = round_up(basis_.length(), kLanes<T>);
    width_ = round_up(strip, std::max<index_t>(kLanes<T>, kTileRows));
    const index_t chunk = classes * rank, tiles = round_up(chunk, kTileRows);
    Workspace workspace;
    // Two of what is shared: a member may be busy with one chunk while another prepares the next.
    T* coefficients[2] = {workspace.take<T>(tiles * width_), workspace.take<T>(tiles * width_)};
    T* bases[2] = {nullptr, nullptr};
    for (T*& copy : bases) copy = workspace.take<T>(d_x_ && !basis_in_place_ ? chunk * padded : 0);
    T* x_copy = workspace.take<T>(x_in_place_.data ? 0 : strip * padded);
    double* inverse = parameters_.normalize ? workspace.take<double>(strip) : nullptr;
    double* factors = workspace.take<double>(width_ * threads);
    T* scratch = workspace.take<T>(width_ * threads);
    index_t* offsets = workspace.take<index_t>(chunk * threads);
    parallel_team(threads, [&](Team team) {
      const Member own{factors + team.rank() * width_, scratch + team.rank() * width_, offsets + team.rank() * chunk};
      int turn = 0;
      for (index_t first = 0; first < rows_; first += strip) {
        const index_t count = std::min(strip, rows_ - first);
        const RightOperand<T> x = strip_of_x(first, count, x_copy, padded, team);
        if (inverse) {
          for_own_rows(count, team, [&](index_t row) {
            const T* from = x.data + row * x.step;
            inverse[row] = inverse_length(inner_product(from, from, basis_.length()));
          });
          team.barrier();
        }
        for (index_t c = 0; c < basis_.classes(); c += classes, turn ^= 1) {
          const index_t end = std::min(basis_.classes(), c + classes), begin = c * rank, size = (end - c) * rank;
          for (index_t i = c + team.rank(); i < end; i += team.size()) {
            fill_coefficients(i, first, count, inverse, coefficients[turn] + (i - c) * rank * width_, own);
          }
          const RightOperand<T> basis = chunk_of_basis(begin, size, bases[turn], padded, own, team);
          team.barrier();
          const T* u = coefficients[turn];
          if (d_W_) multiply_x(u, begin, size, x, count, first > 0, team);
          if (d_x_) multiply_basis(u, size, basis, first, count, c > 0, team);
        }
        team.barrier();  // the strip is done, and x may be copied again
        if (inverse && d_x_) {
          for_own_rows(count, team, [&](index_t row) {
            remove_component(x.data + row * x.step, inverse[row], d_x_ + (first + row) * basis_.length());
          });
        }
      }
    });
  }

 private:
  struct Member {
    double* factors;
    T* scratch;
    index_t* offsets;
  };

  RightOperand<T> strip_of_x(index_t first, index_t count, T* copy, index_t step, Team team) const {
    if (!d_W_ && !parameters_.normalize) return {};
    if (x_in_place_.data) return {x_in_place_.data + first * x_in_place_.step, x_in_place_.step};
    copy_rows(x_, first, count, copy, step, team);
    return {copy, step};
  }

  RightOperand<T> chunk_of_basis(index_t begin, index_t size, T* copy, index_t step, const Member& own,
                                 Team team) const {
    if (!d_x_) return {};
    if (basis_in_place_) return {basis_.at(begin), basis_.row_step()};
    if constexpr (kTransposesTiles<T>) {
      if (basis_.tiles_of_columns()) {
        copy_columns(begin, size, copy, step, team);
        return {copy, step};
      }
    }
    copy_rows(basis_.gathered(begin, size, own.offsets), 0, size, copy, step, team);
    return {copy, step};
  }

  // body(row) for this member's rows, the same ones in every pass over a strip.
  template <class Body>
  static void for_own_rows(index_t count, Team team, Body&& body) {
    for (index_t row = team.rank(); row < count; row += team.size()) body(row);
  }

  // Rows filled up to whole vectors with zeros.
  void copy_rows(const Rows<T>& rows, index_t first, index_t count, T* copy, index_t step, Team team) const {
    for_own_rows(count, team, [&](index_t row) {
      T* to = copy + row * step;
      const T* from = rows.read(first + row, 0, basis_.length(), to);
      if (from != to) std::copy_n(from, basis_.length(), to);
      std::fill(to + basis_.length(), to + step, T(0));
    });
  }

  // y -= x <x, y> / ||x||^2: a length does not change along x.
  void remove_component(const T* x, double inverse, T* y) const {
    const double along = inner_product(x, y, basis_.length()) * inverse * inverse;
    for (index_t j = 0; j < basis_.length(); ++j) {
      y[j] = static_cast<T>(static_cast<double>(y[j]) - static_cast<double>(x[j]) * along);
    }
  }

  // As copy_rows, from column bases: whole tiles of basis vectors.
  void copy_columns(index_t begin, index_t size, T* copy, index_t step, Team team) const {
    const index_t length = basis_.length(), entry_step = basis_.entry_step();
    for (index_t row = team.rank() * kTileRows; row < size; row += team.size() * kTileRows) {
      const T* from = basis_.at(begin + row);
      T* to = copy + row * step;
      index_t j = 0;
      for (; j + kLanes<T> <= length; j += kLanes<T>) {
        Vec<T> square[kLanes<T>];
        load_transposed(from + j * entry_step, entry_step, square);
        for (int i = 0; i < kTileRows; ++i) store(to + i * step + j, square[i]);
      }
      for (int i = 0; i < kTileRows; ++i) {
        for (index_t e = j; e < step; ++e) to[i * step + e] = e < length ? from[e * entry_step + i] : T(0);
      }
    }
  }

  // u_c = scale g_c z_c / ||z_c||, times `inverse` where given, of one class and a strip of rows; the lanes beyond it
  // are zero.
  void fill_coefficients(index_t c, index_t first, index_t count, const double* inverse, T* u,
                         const Member& own) const {
    std::fill_n(own.factors, width_, 0.0);
    for (index_t i = 0; i < basis_.rank(); ++i) {
      add_squares(projections_.read(c * basis_.rank() + i, first, count, own.scratch), count, own.factors);
    }
    const T* g = upstream_ + first * upstream_row_ + c * upstream_class_;
    for (index_t r = 0; r < count; ++r) {
      const double factor = parameters_.scale * (inverse ? inverse[r] : 1) * inverse_length(own.factors[r]);
      own.factors[r] = factor == 0 ? 0 : factor * static_cast<double>(g[r * upstream_row_]);
    }
    for (index_t i = 0; i < basis_.rank(); ++i, u += width_) {
      const T* z = projections_.read(c * basis_.rank() + i, first, count, own.scratch);
      for (index_t r = 0; r < count; ++r) u[r] = static_cast<T>(static_cast<double>(z[r]) * own.factors[r]);
      std::fill(u + count, u + width_, T(0));
    }
  }

  // Units of work are dealt in runs of neighbours, which share the right operand.
  template <class Body>
  static void for_each_tile(index_t tiles, index_t length, Team team, Body&& body) {
    const index_t panels = (length + kPanelWidth<T> - 1) / kPanelWidth<T>, units = tiles * panels;
    for (index_t unit = units * team.rank() / team.size(); unit < units * (team.rank() + 1) / team.size(); ++unit) {
      const index_t column = unit / tiles * kPanelWidth<T>, left = std::min<index_t>(kPanelWidth<T>, length - column);
      with_vectors<T>((left + kLanes<T> - 1) / kLanes<T>,
                      [&](auto vectors) { body(unit % tiles * kTileRows, column, vectors); });
    }
  }

  // Rows begin ... begin + size of d_W.
  void multiply_x(const T* u, index_t begin, index_t size, const RightOperand<T>& x, index_t count, bool add,
                  Team team) const {
    const index_t length = basis_.length();
    T* const target = d_W_ + begin * length;
    for_each_tile((size + kTileRows - 1) / kTileRows, length, team, [&](index_t row, index_t column, auto vectors) {
      Vec<T> sums[kTileRows][vectors.value];
      multiply_strided_tile<vectors.value>(u + row * width_, width_, 1, x.data + column, x.step, count, sums);
      if (parameters_.columns) {
        StoreColumns<T>{target, basis_.rank(), length, size, add}(row, column, sums);
      } else {
        StoreRows<T>{target, length, size, length, add}(row, column, sums);
      }
    });
  }

  // A chunk's share of rows first ... first + count of d_x.
  void multiply_basis(const T* u, index_t size, const RightOperand<T>& basis, index_t first, index_t count, bool add,
                      Team team) const {
    const index_t length = basis_.length();
    const StoreRows<T> finish{d_x_ + first * length, length, count, length, add};
    for_each_tile((count + kTileRows - 1) / kTileRows, length, team, [&](index_t row, index_t column, auto vectors) {
      Vec<T> sums[kTileRows][vectors.value];
      multiply_tile<vectors.value>(u + row, width_, basis.data + column, basis.step, size, sums);
      finish(row, column, sums);
    });
  }

  BasisRows<T> basis_;
  Rows<T> x_, projections_;
  const T* upstream_;
  index_t upstream_row_, upstream_class_, rows_, width_ = 0;
  T *d_x_, *d_W_;
  SubspaceGradientParameters parameters_;
  RightOperand<T> x_in_place_;
  bool basis_in_place_ = false;
};

}  // namespace

void subspace_logits_gradient_cpu(const TensorView& x, const TensorView& W, const TensorView& projections,
                                  const TensorView& upstream, const TensorView& d_x, const TensorView& d_W,
                                  const SubspaceGradientParameters& parameters, int threads) {
  dispatch_float(d_x.dtype, "subspace_logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(x, 2), rows = x.size(-2), length = x.size(-1), count = W.size(-3) * W.size(-2);
    if (rows * count == 0) {  // an empty sum
      std::fill_n(d_x.ptr<T>(), d_x.numel(), T(0));
      std::fill_n(d_W.ptr<T>(), d_W.numel(), T(0));
    }
    if (items * rows * count * length == 0) return;
    const double flops = 4 * static_cast<double>(rows * count) * static_cast<double>(length);
    const auto run = [&](index_t item, int team) {
      T* of_x = d_x.numel() ? d_x.ptr<T>() + item * rows * length : nullptr;
      T* of_W = d_W.numel() ? d_W.ptr<T>() + item * count * length : nullptr;
      Item<T>(x, W, projections, upstream, item, of_x, of_W, parameters).run(team);
    };
    if (items >= threads) {
      parallel_for(items, useful_threads(static_cast<double>(items) * flops, threads),
                   [&](index_t item) { run(item, 1); });
    } else {
      for (index_t item = 0; item < items; ++item) run(item, useful_threads(flops / 4, threads));
    }
  });
}

}  // namespace subspan
