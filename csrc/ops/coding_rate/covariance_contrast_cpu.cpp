#include "core/dispatch.h"
#include "ops/coding_rate/covariance_contrast.h"
#include "ops/coding_rate/gram_gradient.h"

namespace subspan {
namespace {

constexpr index_t kPackBytes = 24 << 10;  // of a packed panel: half of a first-level cache

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
    const index_t side = (features_ + kLanes<T> - 1) / kLanes<T>;
    square_sums_ = workspace.take<double>(side * (side + 1) / 2);
  }

  // Run by every member of the team; the contrast is complete when all have returned.
  void run(T* contrast, T* covariance, T* d_z, const CovarianceParameters& parameters, Team team) const {
    form_covariance(team);
    const index_t squares = update(covariance, d_z != nullptr, parameters, team);
    team.barrier();
    if (team.rank() == 0) {
      double sum = 0;
      for (index_t i = 0; i < squares; ++i) sum += square_sums_[i];
      *contrast = static_cast<T>(sum + (sum - sum));  // not finite: NaN
    }
    if (!d_z) return;
    const GradientRows<T> of{rows_, samples_, features_, nullptr, nullptr};
    const GradientTarget target{d_z, sizeof(T) == 8, 2.0 / static_cast<double>(samples_), false};
    write_right_product<T>(matrix_, of, target, team);
  }

 private:
  // The upper triangle of B in matrix_.
  void form_covariance(Team team) const {
    if (samples_ == 0) {  // no samples have no covariance
      if (team.rank() == 0) std::fill_n(matrix_.data, panel_elements<T>(matrix_.depth, features_), T(0));
      team.barrier();
      return;
    }
    const Panels<T> packed{packed_ + team.rank() * panel_elements<T>(block_, features_), block_, matrix_.width};
    for (index_t k = 0; k < samples_; k += block_) {
      const index_t depth = std::min(block_, samples_ - k);
      pack_columns(rows_, k, depth, 0, features_, packed);
      const T scale = k + depth == samples_ ? T(1) / static_cast<T>(samples_) : T(1);
      multiply(packed, features_, packed, features_, depth, Part::kUpper, team, StorePanels<T>{matrix_, k > 0, scale});
    }
    team.barrier();
  }

  // Two squares of the matrices at a time, mirror images of each other: C' to the caller, its product with B, and in
  // place of B the symmetric matrix of the gradient. Returns the number of sums.
  index_t update(T* covariance, bool gradient, const CovarianceParameters& parameters, Team team) const {
    index_t turn = 0;
    for (index_t row = 0; row < features_; row += kLanes<T>) {
      for (index_t column = row; column < features_; column += kLanes<T>, ++turn) {
        if (turn % team.size() != team.rank()) continue;
        square_sums_[turn] = update_square(row, column, covariance, gradient, parameters);
      }
    }
    return turn;
  }

  double update_square(index_t row, index_t column, T* covariance, bool gradient,
                       const CovarianceParameters& parameters) const {
    constexpr index_t lanes = kLanes<T>;
    const T beta = static_cast<T>(parameters.beta), rest = static_cast<T>(1 - parameters.beta);
    const T share = parameters.detach_covariance ? rest : 2 * rest;
    Vec<T> current[lanes], here[lanes], there[lanes], sum{};
    for (index_t i = 0; i < lanes; ++i) {
      current[i] = row + i < features_ ? keep(load(matrix_.at(row + i, column)), features_ - column) : Vec<T>{};
      here[i] = beta * previous(row + i, column);
    }
    const auto finish = [&](index_t r, index_t c, const Vec<T>& kept, const Vec<T>& b) {
      const Vec<T> next = kept + rest * b;
      sum += next * b;
      if (covariance && r < features_) put(covariance + r * features_ + c, next, features_ - c);
    };
    for (index_t i = 0; i < lanes; ++i) finish(row + i, column, here[i], current[i]);
    if (row == column) {
      for (index_t i = 0; i < lanes; ++i) there[i] = here[i];
    } else {
      Vec<T> mirrored[lanes];
      for (index_t i = 0; i < lanes; ++i) mirrored[i] = current[i];
      transpose_square<T>(mirrored);
      for (index_t i = 0; i < lanes; ++i) {
        there[i] = beta * previous(column + i, row);
        finish(column + i, row, there[i], mirrored[i]);
      }
    }
    if (gradient) {
      transpose_square<T>(there);
      for (index_t i = 0; i < lanes; ++i) current[i] = T(0.5) * (here[i] + there[i]) + share * current[i];
      for (index_t i = 0; i < std::min(lanes, features_ - row); ++i) store(matrix_.at(row + i, column), current[i]);
      transpose_square<T>(current);
      for (index_t i = 0; i < std::min(lanes, features_ - column); ++i) store(matrix_.at(column + i, row), current[i]);
    }
    double total = 0;
    for (index_t lane = 0; lane < lanes; ++lane) total += static_cast<double>(sum[lane]);
    return total;
  }

  // Entries of C from (row, column) on; zero beyond its edges.
  Vec<T> previous(index_t row, index_t column) const {
    if (row >= features_) return Vec<T>{};
    const T* from = previous_ + row * row_step_ + column * column_step_;
    const index_t count = std::min<index_t>(kLanes<T>, features_ - column);
    if (column_step_ == 1) return count == kLanes<T> ? load(from) : load_partial(from, count);
    Vec<T> value{};
    for (index_t lane = 0; lane < count; ++lane) value[lane] = from[lane * column_step_];
    return value;
  }
  static Vec<T> keep(Vec<T> value, index_t count) {
    for (index_t lane = count; lane < kLanes<T>; ++lane) value[lane] = 0;
    return value;
  }
  static void put(T* to, Vec<T> value, index_t count) {
    if (count >= kLanes<T>) return store(to, value);
    for (index_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
  }

  Rows<T> rows_;
  const T* previous_;
  index_t row_step_, column_step_, samples_, features_;
  Panels<T> matrix_;
  index_t block_;
  T* packed_;
  double* square_sums_;
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
    const auto run = [&](index_t item, int team_size) {
      Workspace workspace;
      const Item<T> one(z, C, item, team_size, workspace);
      T* covariance_out = covariance ? covariance->ptr<T>() + item * features * features : nullptr;
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
