#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/angles/basis_rows.h"
#include "ops/angles/subspace_logits.h"

namespace subspan {
namespace {

constexpr index_t kDepthBlock = 256;                 // of a sum that is kept in registers
constexpr index_t kStripBytes = index_t{2} << 20;    // of packed rows of x
constexpr index_t kBasisBytes = index_t{256} << 10;  // of bases that stay in cache while panels of x pass by

// One batch item. Basis vectors are the left operand of the micro-kernel, one entry broadcast at a time, so that any
// strides are read in place; the rows of x lie in its lanes, and the squares of a class add up without leaving them.
template <class T>
class Item {
 public:
  Item(const TensorView& x, const TensorView& W, index_t item, T* logits, T* projections,
       const SubspaceParameters& parameters)
      : basis_(W, item),
        x_(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1)),
        rows_(x.size(-2)),
        logits_(logits),
        projections_(projections),
        parameters_(parameters) {}

  void run(int threads) {
    const index_t length = std::max<index_t>(basis_.length(), 1), bytes = length * index_t{sizeof(T)};
    const index_t strip =
        std::min(rows_, std::max<index_t>(kPanelWidth<T>, kStripBytes / bytes / kPanelWidth<T> * kPanelWidth<T>));
    // Panels of equally many vectors: a last one of few would run at a part of the speed.
    const index_t vectors = (strip + kLanes<T> - 1) / kLanes<T>;
    const index_t panels = (vectors + kTileVectors<T> - 1) / kTileVectors<T>;
    width_ = (vectors + panels - 1) / panels * kLanes<T>;
    const index_t rank = std::max<index_t>(basis_.rank(), 1);
    block_ = std::clamp<index_t>(kBasisBytes / bytes / rank, 1, basis_.classes());
    const index_t block_rows = basis_.tiles_in_place() ? kUnit : round_up(block_ * rank, kUnit);
    Workspace workspace;
    const Panels<T> packed{workspace.take<T>(panels * width_ * length), length, width_};
    T* copies = workspace.take<T>(block_rows * length * threads);
    index_t* offsets = workspace.take<index_t>(block_rows * threads);
    T* totals = workspace.take<T>(kTileRows * width_ * threads);
    if (parameters_.normalize) inverse_ = workspace.take<double>(panels * width_);
    double* squares = workspace.take<double>(block_ * width_ * threads);
    parallel_team(threads, [&](Team team) {
      const index_t rank_of = team.rank();
      const Member own{Panels<T>{copies + rank_of * block_rows * length, length, kUnit}, offsets + rank_of * block_rows,
                       totals + rank_of * kTileRows * width_, squares + rank_of * block_ * width_};
      const index_t begin = basis_.classes() * team.rank() / team.size();
      const index_t end = basis_.classes() * (team.rank() + 1) / team.size();
      for (index_t first = 0; first < rows_; first += strip) {
        const index_t count = std::min(strip, rows_ - first);
        for (index_t p = team.rank(); p * width_ < count; p += team.size()) {
          const Panels<T> panel{packed.panel(p), length, width_};
          const index_t lanes = std::min(width_, count - p * width_);
          pack_rows(x_, first + p * width_, lanes, 0, basis_.length(), panel);
          if (inverse_) measure(panel, lanes, inverse_ + p * width_);
        }
        team.barrier();
        for (index_t c = begin; c < end; c += block_) project(c, std::min(end, c + block_), first, count, packed, own);
        team.barrier();
      }
    });
  }

 private:
  static constexpr index_t kUnit = std::max<index_t>(kLanes<T>, kTileRows);  // narrowest panel

  struct Member {
    Panels<T> copies;  // of rows that cannot be read in place
    index_t* offsets;
    T* totals;        // a tile of projections
    double* squares;  // of every class of the block, and every lane of the panel
  };

  // The inverse lengths of the rows of x in a panel.
  void measure(const Panels<T>& panel, index_t lanes, double* inverse) const {
    std::fill_n(inverse, lanes, 0.0);
    for (index_t k = 0; k < basis_.length(); ++k) add_squares(panel.at(k, 0), lanes, inverse);
    for (index_t lane = 0; lane < lanes; ++lane) inverse[lane] = inverse_length(inverse[lane]);
  }

  // The classes first_class ... end_class against a strip of x.
  void project(index_t first_class, index_t end_class, index_t first, index_t count, const Panels<T>& packed,
               const Member& own) const {
    const index_t rank = basis_.rank(), begin = first_class * rank, end = end_class * rank;
    const bool in_place = basis_.tiles_in_place();
    // A tile that would reach past the last row of all is read from a copy with zeros.
    const index_t whole = in_place ? std::max(begin, basis_.count() - kTileRows + 1) : begin;
    const index_t copied = begin + (whole - begin + kTileRows - 1) / kTileRows * kTileRows;
    if (copied < end) {
      pack_rows(basis_.gathered(copied, end - copied, own.offsets), 0, end - copied, 0, basis_.length(), own.copies);
    }
    for (index_t p = 0; p * width_ < count; ++p) {
      const index_t lanes = std::min(width_, count - p * width_);
      std::fill_n(own.squares, (end_class - first_class) * width_, 0.0);
      with_vectors<T>((lanes + kLanes<T> - 1) / kLanes<T>, [&](auto vectors) {
        for (index_t row = begin; row < end; row += kTileRows) {
          if (row < copied) {
            total<vectors.value>(basis_.at(row), basis_.row_step(), basis_.entry_step(), packed.panel(p), own.totals);
          } else {
            total<vectors.value>(own.copies.column(row - copied), 1, kUnit, packed.panel(p), own.totals);
          }
          finish_tile(row, std::min<index_t>(kTileRows, end - row), first_class, first + p * width_, lanes, own);
        }
      });
      finish_panel(first_class, end_class, first, p, lanes, own);
    }
  }

  // The inner products of one tile: those of every block of the length are added up in memory.
  template <int Vectors>
  void total(const T* left, index_t row_step, index_t entry_step, const T* right, T* totals) const {
    const index_t length = basis_.length();
    for (index_t k = 0; k == 0 || k < length; k += kDepthBlock) {
      Vec<T> sums[kTileRows][Vectors];
      multiply_strided_tile<Vectors>(left + k * entry_step, row_step, entry_step, right + k * width_, width_,
                                     std::min(kDepthBlock, length - k), sums);
      for (int i = 0; i < kTileRows; ++i) {
        for (int v = 0; v < Vectors; ++v) {
          T* to = totals + i * width_ + v * kLanes<T>;
          store(to, k == 0 ? sums[i][v] : load(to) + sums[i][v]);
        }
      }
    }
  }

  [[gnu::noinline]] void finish_tile(index_t row, index_t tile_rows, index_t first_class, index_t first, index_t lanes,
                                     const Member& own) const {
    for (index_t i = 0; i < tile_rows; ++i) {
      const T* projection = own.totals + i * width_;
      add_squares(projection, round_up(lanes, kLanes<T>),
                  own.squares + ((row + i) / basis_.rank() - first_class) * width_);
      if (projections_) std::copy_n(projection, lanes, projections_ + (row + i) * rows_ + first);
    }
  }

  [[gnu::noinline]] void finish_panel(index_t first_class, index_t end_class, index_t first, index_t p, index_t lanes,
                                      const Member& own) const {
    const index_t classes = end_class - first_class;
    for (index_t i = 0; i < classes * width_; ++i) own.squares[i] = parameters_.scale * std::sqrt(own.squares[i]);
    for (index_t lane = 0; lane < lanes; ++lane) {
      T* to = logits_ + (first + p * width_ + lane) * basis_.classes() + first_class;
      const double factor = inverse_ ? inverse_[p * width_ + lane] : 1;
      for (index_t c = 0; c < classes; ++c) to[c] = static_cast<T>(own.squares[c * width_ + lane] * factor);
    }
  }

  BasisRows<T> basis_;
  Rows<T> x_;
  index_t rows_, width_ = 0, block_ = 1;
  T *logits_, *projections_;
  double* inverse_ = nullptr;  // lengths of the rows of a strip, where they are divided out
  SubspaceParameters parameters_;
};

}  // namespace

void subspace_logits_cpu(const TensorView& x, const TensorView& W, const TensorView& logits,
                         const TensorView* projections, const SubspaceParameters& parameters, int threads) {
  if (logits.numel() == 0) return;
  dispatch_float(logits.dtype, "subspace_logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(x, 2), rows = x.size(-2), classes = W.size(-3), rank = W.size(-2);
    const double flops = 2 * static_cast<double>(rows * classes) * static_cast<double>(rank * (x.size(-1) + 1));
    const auto run = [&](index_t item, int team) {
      T* z = projections ? projections->ptr<T>() + item * rows * classes * rank : nullptr;
      Item<T>(x, W, item, logits.ptr<T>() + item * rows * classes, z, parameters).run(team);
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
