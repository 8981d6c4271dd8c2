#include "core/dispatch.h"
#include "core/small_matrix/inverse.h"
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
    row_sums_ = workspace.take<double>(features_);
  }

  // Run by every member of the team; the contrast is complete when all have returned.
  void run(T* contrast, T* covariance, T* d_z, const CovarianceParameters& parameters, Team team) const {
    form_covariance(team);
    update(covariance, d_z != nullptr, parameters, team);
    team.barrier();
    if (team.rank() == 0) {
      double sum = 0;
      for (index_t i = 0; i < features_; ++i) sum += row_sums_[i];
      *contrast = static_cast<T>(sum + (sum - sum));  // not finite: NaN
    }
    if (!d_z) return;
    make_symmetric(team);
    const GradientRows<T> of{rows_, samples_, features_, nullptr, nullptr};
    const GradientTarget target{d_z, sizeof(T) == 8, 2.0 / static_cast<double>(samples_), false};
    write_right_product<T>(matrix_, of, target, team);
  }

 private:
  // B, full, in matrix_.
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
    detail::mirror(matrix_, features_, team);
    team.barrier();
  }

  // Row by row: C' to the caller, its product with B, and in place of B what becomes the gradient's matrix when it is
  // made symmetric.
  void update(T* covariance, bool gradient, const CovarianceParameters& parameters, Team team) const {
    Workspace workspace;
    const T beta = static_cast<T>(parameters.beta), rest = static_cast<T>(1 - parameters.beta);
    const T share = parameters.detach_covariance ? rest : 2 * rest;
    T* scratch = workspace.take<T>(features_);
    T* gathered = workspace.take<T>(features_);
    for (index_t i = team.rank(); i < features_; i += team.size()) {
      T* out = covariance ? covariance + i * features_ : scratch;
      const T* row = previous_ + i * row_step_;
      if (column_step_ != 1) {
        for (index_t j = 0; j < features_; ++j) gathered[j] = row[j * column_step_];
        row = gathered;
      }
      double sum = 0;
      for (index_t first = 0; first < features_; first += matrix_.width) {
        const index_t count = std::min(matrix_.width, features_ - first);
        T* B = matrix_.at(i, first);
        Vec<T> part{};
        index_t k = 0;
        for (; k + kLanes<T> <= count; k += kLanes<T>) {
          const Vec<T> c = beta * load(row + first + k), b = load(B + k), next = c + rest * b;
          store(out + first + k, next);
          part += next * b;
          if (gradient) store(B + k, c + share * b);
        }
        for (; k < count; ++k) {
          const T c = beta * row[first + k], b = B[k], next = c + rest * b;
          out[first + k] = next;
          part[0] += next * b;
          if (gradient) B[k] = c + share * b;
        }
        for (int lane = 0; lane < kLanes<T>; ++lane) sum += static_cast<double>(part[lane]);
      }
      row_sums_[i] = sum;
    }
  }

  // (G + G^T) / 2, square by square.
  void make_symmetric(Team team) const {
    constexpr index_t lanes = kLanes<T>;
    index_t turn = 0;
    for (index_t row = 0; row < features_; row += lanes) {
      for (index_t column = row; column < features_; column += lanes, ++turn) {
        if (turn % team.size() != team.rank()) continue;
        Vec<T> here[lanes], there[lanes];
        for (index_t i = 0; i < lanes; ++i) {
          here[i] = row + i < features_ ? load(matrix_.at(row + i, column)) : Vec<T>{};
          there[i] = column + i < features_ ? load(matrix_.at(column + i, row)) : Vec<T>{};
        }
        transpose_square<T>(there);
        for (index_t i = 0; i < lanes; ++i) here[i] = T(0.5) * (here[i] + there[i]);
        for (index_t i = 0; i < std::min(lanes, features_ - row); ++i) store(matrix_.at(row + i, column), here[i]);
        transpose_square<T>(here);
        for (index_t i = 0; i < std::min(lanes, features_ - column); ++i) store(matrix_.at(column + i, row), here[i]);
      }
    }
    team.barrier();
  }

  Rows<T> rows_;
  const T* previous_;
  index_t row_step_, column_step_, samples_, features_;
  Panels<T> matrix_;
  index_t block_;
  T* packed_;
  double* row_sums_;
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
