#include <iterator>

#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/stream.h"
#include "ops/coding_rate/covariance_contrast.h"
#include "ops/coding_rate/gram_gradient.h"

namespace subspan {
namespace {

constexpr index_t kPackBytes = 24 << 10;  // of a packed panel: half of a first-level cache

// C' is read again in the next step, when others have filled the caches. From this size on its stores pass them by, and
// leave their place to C: 223 to 228 us for 6 items of 64 x 256, in three runs, and 235 to 255 without.
constexpr std::size_t kStreamedBytes = std::size_t{1} << 20;

// Where C' goes; null: not wanted.
template <class T>
struct Updated {
  T* data = nullptr;
  bool streams = false;

  Updated(const TensorView* covariance, index_t features) {
    if (!covariance) return;
    data = covariance->ptr<T>();
    const std::size_t bytes = static_cast<std::size_t>(covariance->numel()) * sizeof(T);
    streams = features % kLanes<T> == 0 && entries_to_alignment(data) == 0 && bytes >= kStreamedBytes &&
              !has_no_pages(data, bytes);
  }
  explicit operator bool() const { return data != nullptr; }
  Updated of(index_t offset) const {
    Updated item = *this;
    if (data) item.data += offset;
    return item;
  }
};

template <class T>
class Item {
 public:
  Item(const TensorView& z, const TensorView& C, index_t item, int team_size, Workspace& workspace)
      : rows_(batch_item(z, 2, item), z.dtype, z.step(-2), z.step(-1)),
        previous_(static_cast<const T*>(batch_item(C, 2, item))),
        row_step_(C.step(-2)),
        column_step_(C.step(-1)),
        samples_(z.size(-2)),
        features_(z.size(-1)) {
    const index_t depth = round_up(features_, kTileRows), width = panel_width<T>(features_);
    matrix_ = {workspace.take<T>(panel_elements<T>(depth, features_)), depth, width};
    block_ = std::min(kPackBytes / (width * static_cast<index_t>(sizeof(T))), round_up(samples_, kLanes<T>));
    packed_ = workspace.take<T>(panel_elements<T>(block_, features_) * team_size);
    tile_ = workspace.take<T>(width * width * team_size);
    pair_sums_ = workspace.take<double>(panel_count<T>(features_) * (panel_count<T>(features_) + 1) / 2);
  }

  // Run by every member of the team; the contrast is complete when all have returned.
  void run(T* contrast, const Updated<T>& covariance, T* d_z, const CovarianceParameters& parameters, Team team) const {
    const index_t pairs = form(covariance, d_z != nullptr, parameters, team);
    if (covariance.streams) end_stream();
    team.barrier();
    if (team.rank() == 0) {
      double sum = 0;
      for (index_t i = 0; i < pairs; ++i) sum += pair_sums_[i];
      *contrast = static_cast<T>(sum + (sum - sum));  // not finite: NaN
    }
    if (!d_z) return;
    const GradientRows<T> of{rows_, samples_, features_, nullptr, nullptr};
    const GradientTarget target{d_z, sizeof(T) == 8, 2.0 / static_cast<double>(samples_), false};
    write_right_product<T>(matrix_, of, target, team);
  }

 private:
  // B, C' and the matrix of the gradient. The upper triangle of B is summed up in matrix_; its last block of samples is
  // added a pair of panels at a time, which is finished while it lies in the first-level cache. Returns the number of
  // pairs.
  index_t form(const Updated<T>& covariance, bool gradient, const CovarianceParameters& parameters, Team team) const {
    const Panels<T> packed{packed_ + team.rank() * panel_elements<T>(block_, features_), block_, matrix_.width};
    index_t done = 0;
    for (; done + block_ < samples_; done += block_) {
      pack_columns(rows_, done, block_, 0, features_, packed);
      multiply(packed, features_, packed, features_, block_, Part::kUpper, team,
               StorePanels<T>{matrix_, done > 0, T(1)});
    }
    if (done > 0) team.barrier();
    pack_columns(rows_, done, samples_ - done, 0, features_, packed);
    index_t pair = 0;
    for (index_t row = 0; row < features_; row += matrix_.width) {
      for (index_t column = row; column < features_; column += matrix_.width, ++pair) {
        if (pair % team.size() != team.rank()) continue;
        const Tile tile{tile_ + team.rank() * matrix_.width * matrix_.width, row, column};
        multiply_pair(packed, samples_ - done, done > 0, tile);
        pair_sums_[pair] = update(tile, covariance, gradient, parameters);
      }
    }
    return pair;
  }

  // The entries of B from (row, column) on, of two panels: width x width, row after row.
  struct Tile {
    T* data;
    index_t row, column;
  };

  void multiply_pair(const Panels<T>& packed, index_t depth, bool add, const Tile& tile) const {
    const index_t width = packed.width;
    const Panels<T> left{packed.panel(tile.row / width), packed.depth, width};
    const Panels<T> right{packed.panel(tile.column / width), packed.depth, width};
    const T scale = T(1) / static_cast<T>(std::max<index_t>(samples_, 1));  // no samples have no covariance
    multiply(left, std::min(width, features_ - tile.row), right, std::min(width, features_ - tile.column), depth,
             tile.row == tile.column ? Part::kUpper : Part::kAll, Team(), [&](index_t row, index_t column, auto& sums) {
               const T* before = add ? matrix_.at(tile.row + row, tile.column + column) : nullptr;
               T* to = tile.data + row * width + column;
               for (int i = 0; i < kTileRows; ++i, to += width) {
                 for (int v = 0; v < static_cast<int>(std::size(sums[i])); ++v) {
                   const index_t at = i * width + v * kLanes<T>;
                   store(to + v * kLanes<T>, (add ? load(before + at) + sums[i][v] : sums[i][v]) * scale);
                 }
               }
             });
  }

  // Two squares of a tile's matrices at a time, mirror images of each other: C' to the caller, its product with B, and
  // the symmetric matrix of the gradient to matrix_. Returns the sum of the products.
  double update(const Tile& tile, const Updated<T>& covariance, bool gradient,
                const CovarianceParameters& parameters) const {
    constexpr index_t lanes = kLanes<T>;
    const index_t row_end = std::min(features_, tile.row + matrix_.width);
    const index_t column_end = std::min(features_, tile.column + matrix_.width);
    double sum = 0;
    for (index_t row = tile.row; row < row_end; row += lanes) {
      for (index_t column = std::max(row, tile.column); column < column_end; column += lanes) {
        const T* square = tile.data + (row - tile.row) * matrix_.width + column - tile.column;
        const bool whole = column + lanes <= features_;
        sum += whole ? update_square<true>(square, row, column, covariance, gradient, parameters)
                     : update_square<false>(square, row, column, covariance, gradient, parameters);
      }
    }
    return sum;
  }

  // With H = beta (C + C^T) / 2 a square and its mirror image contribute 2 B (H + (1 - beta) B) to the contrast, and
  // the gradient's matrix is H + share B. One array of vectors is alive at a time: more would not fit in registers.
  template <bool Whole>
  double update_square(const T* square, index_t row, index_t column, const Updated<T>& covariance, bool gradient,
                       const CovarianceParameters& parameters) const {
    constexpr index_t lanes = kLanes<T>;
    const T beta = static_cast<T>(parameters.beta), rest = static_cast<T>(1 - parameters.beta);
    const T share = parameters.detach_covariance ? rest : 2 * rest;
    const index_t width = matrix_.width, features = features_;
    const index_t rows = Whole ? lanes : std::min(lanes, features - row);
    const index_t columns = Whole ? lanes : std::min(lanes, features - column);
    const auto current = [=](index_t i) {
      if (Whole) return load(square + i * width);
      return i < rows ? load_partial(square + i * width, columns) : Vec<T>{};
    };
    const auto put = [=](index_t r, index_t c, const Vec<T>& value, index_t count) {
      T* to = covariance.data + r * features + c;
      if (Whole) return covariance.streams ? stream(to, value) : store(to, value);
      for (index_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
    };
    T scratch_here[lanes * lanes], scratch_there[lanes * lanes];
    const Square here = previous(row, column, scratch_here), there = previous(column, row, scratch_there);
    Vec<T> mirrored[lanes], sum{};
    if (covariance && row != column) {
      for (index_t i = 0; i < lanes; ++i) mirrored[i] = current(i);
      transpose_square<T>(mirrored);
      for (index_t i = 0; i < columns; ++i) {
        put(column + i, row, beta * there.template row<Whole>(i, rows) + rest * mirrored[i], rows);
      }
    }
    for (index_t i = 0; i < lanes; ++i) {
      mirrored[i] = i < columns ? there.template row<Whole>(i, rows) : Vec<T>{};
    }
    transpose_square<T>(mirrored);
    for (index_t i = 0; i < rows; ++i) {
      const Vec<T> b = current(i), before = here.template row<Whole>(i, columns);
      const Vec<T> mean = T(0.5) * beta * (before + mirrored[i]);
      sum += b * (mean + rest * b);
      if (covariance) put(row + i, column, beta * before + rest * b, columns);
      mirrored[i] = mean + share * b;
    }
    if (gradient) {
      T* to = matrix_.at(row, column);
      for (index_t i = 0; i < rows; ++i) store(to + i * width, mirrored[i]);
      if (row != column) {
        transpose_square<T>(mirrored);
        to = matrix_.at(column, row);
        for (index_t i = 0; i < columns; ++i) store(to + i * width, mirrored[i]);
      }
    }
    double total = 0;
    for (index_t lane = 0; lane < lanes; ++lane) total += static_cast<double>(sum[lane]);
    return row == column ? total : 2 * total;
  }

  // A square of C: where it lies, or a copy in `scratch` if its rows do not lie in one piece.
  struct Square {
    const T* data;
    index_t step;

    // `count` entries of row i, zeros after them.
    template <bool Whole>
    Vec<T> row(index_t i, index_t count) const {
      return Whole ? load(data + i * step) : load_partial(data + i * step, count);
    }
  };
  Square previous(index_t row, index_t column, T (&scratch)[kLanes<T> * kLanes<T>]) const {
    const T* from = previous_ + row * row_step_ + column * column_step_;
    if (column_step_ == 1) return {from, row_step_};
    for (index_t i = 0; i < std::min<index_t>(kLanes<T>, features_ - row); ++i) {
      for (index_t j = 0; j < std::min<index_t>(kLanes<T>, features_ - column); ++j) {
        scratch[i * kLanes<T> + j] = from[i * row_step_ + j * column_step_];
      }
    }
    return {scratch, kLanes<T>};
  }

  Rows<T> rows_;
  const T* previous_;
  index_t row_step_, column_step_, samples_, features_;
  Panels<T> matrix_;
  index_t block_;
  T* packed_;
  T* tile_;
  double* pair_sums_;
};

}  // namespace

void covariance_contrast_cpu(const TensorView& z, const TensorView& C, const TensorView& contrast,
                             const TensorView* covariance, const TensorView* d_z,
                             const CovarianceParameters& parameters, int threads) {
  dispatch_float(C.dtype, "covariance_contrast", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(z, 2), samples = z.size(-2), features = z.size(-1);
    const double square = static_cast<double>(features) * static_cast<double>(features);
    const double flops = (d_z ? 3 : 1) * square * static_cast<double>(samples + 1);
    const Updated<T> updated(covariance, features);
    const auto run = [&](index_t item, int team_size) {
      Workspace workspace;
      const Item<T> one(z, C, item, team_size, workspace);
      const Updated<T> covariance_out = updated.of(item * features * features);
      T* gradient = d_z ? d_z->ptr<T>() + item * samples * features : nullptr;
      parallel_team(team_size,
                    [&](Team team) { one.run(contrast.ptr<T>() + item, covariance_out, gradient, parameters, team); });
    };
    if (items >= threads) {
      const int used = useful_threads(static_cast<double>(items) * flops, threads);
      parallel_for(items, used, [&](index_t item) { run(item, 1); });
    } else {
      for (index_t item = 0; item < items; ++item) run(item, useful_threads(flops / 4, threads));
    }
  });
}

}  // namespace subspan
