// Solves gram problems: the four steps of gram_problem.h, for one item and a team of threads.
#pragma once
#include "core/pack.h"
#include "core/row_dots.h"
#include "core/small_matrix/inverse.h"
#include "ops/coding_rate/gram_problem.h"

namespace subspan {

// A float32 item is computed again in float64 where float32 cannot hold it: above this trace of alpha * Gram ...
constexpr double kPromotionTrace = 1e4;
// ... or where rounding is estimated to cost more than this fraction of the log determinant. Entry j of the diagonal is
// rounded by 2^-24 B_jj and its pivot p_j carries that into log p_j as 2^-24 B_jj / p_j. On features that span their
// space pivots are as large as the diagonal and the sum is tiny; on collapsed ones p_j is about 1. The true error was
// measured at up to five times the estimate, so this keeps it below 1e-5.
constexpr double kPromotionError = 2e-6;

template <class T>
class GramSolver {
 public:
  // Takes all shared memory, so that solve() has no reason to throw while a team waits.
  GramSolver(const GramProblem& problem, bool gradient, int team_size, Workspace& workspace)
      : problem_(problem), rows_(problem.data, problem.dtype, problem.row_step, problem.column_step) {
    const index_t size = problem.factored();
    if (problem.order) rows_ = rows_.gathered(problem.order);
    if (problem.root_weights) {
      root_ = workspace.take<T>(problem.samples);
      std::copy(problem.root_weights, problem.root_weights + problem.samples, root_);
      rows_ = rows_.scaled(root_);
    }
    factor_ = Factor<T>::take(size, workspace);
    diagonal_ = workspace.take<T>(size);
    block_ = kPackBytes / (panel_width<T>(size) * static_cast<index_t>(sizeof(T)));
    block_ = std::min(block_, round_up(problem.summed(), kLanes<T>));
    packed_ = {workspace.take<T>(panel_elements<T>(block_, size) * team_size), block_, panel_width<T>(size)};
    if (uses_dots() && !rows_.in_place()) converted_ = workspace.take<T>(size * problem.summed() * team_size);
    if (gradient)
      work_ = {workspace.take<T>(panel_elements<T>(factor_.lower.depth, size)), factor_.lower.depth,
               factor_.lower.width};
  }

  // The steps below are run by every member of the team; `result` is complete when all have returned.

  // Gram matrix, factor and log determinant. False where the item must be promoted to float64.
  bool factor(GramRate& result, Team team) const {
    form_gram(team);
    constexpr bool may_promote = sizeof(T) == 4;
    if (may_promote && gram_trace() > kPromotionTrace) {
      if (team.rank() == 0) result.promote = true;
      return false;
    }
    if (may_promote && team.rank() == 0) {
      for (index_t i = 0; i < factor_.size; ++i) diagonal_[i] = *factor_.lower.at(i, i);
    }
    PivotLog<double, double, Pivot::kIdentity> log;
    cholesky(factor_, log, team);
    if (team.rank() == 0) {
      result.log_det = log.log();
      result.clamped = static_cast<std::int32_t>(log.info());
      result.promote = may_promote && rounding_estimate() > kPromotionError * result.log_det;
    }
    team.barrier();
    return !result.promote;
  }

  // The full symmetric M (features side) or K^{-1} (samples side).
  const Panels<T>& invert(Team team) const {
    inverse(factor_, work_, factor_.lower, team);
    return factor_.lower;
  }

  void gradient(const GradientTarget& target, Team team) const {
    invert(team);
    target.is_double ? write_gradient<double>(target, team) : write_gradient<float>(target, team);
  }

 private:
  static constexpr index_t kDotSamples = 112, kDotFeatures = 256;  // measured: packing pays beyond
  static constexpr index_t kStripPanels = 2;
  static constexpr index_t kPackBytes = 24 << 10;  // of a packed panel: half of a first-level cache

  // Every member packs for itself and computes its share of the tiles: packing twice costs less than meeting at a
  // barrier for every block and fetching half of it from another core's cache.
  void form_gram(Team team) const {
    const index_t size = problem_.factored();
    const index_t summed = problem_.summed();
    if (summed == 0 && team.rank() == 0)
      std::fill_n(factor_.lower.data, panel_elements<T>(factor_.lower.depth, size), T(0));
    if (uses_dots()) {
      T* converted = converted_ + team.rank() * size * summed;
      row_dots(rows_, size, summed, static_cast<T>(problem_.alpha), factor_.lower, converted, team);
      team.barrier();
      return;
    }
    const Panels<T> packed{packed_.data + team.rank() * panel_elements<T>(block_, size), block_, packed_.width};
    for (index_t k = 0; k < summed; k += block_) {
      const index_t depth = std::min(block_, summed - k);
      if (problem_.on_samples()) {
        pack_rows(rows_, 0, size, k, depth, packed);
      } else {
        pack_columns(rows_, k, depth, 0, size, packed);
      }
      const T scale = k + depth == summed ? static_cast<T>(problem_.alpha) : T(1);
      multiply(packed, size, packed, size, depth, Part::kUpper, team, StorePanels<T>{factor_.lower, k > 0, scale});
    }
    team.barrier();
  }

  bool uses_dots() const {
    return problem_.on_samples() && problem_.samples <= kDotSamples && problem_.features >= kDotFeatures;
  }

  // Sum of B_jj / p_j in units of float32's rounding.
  double rounding_estimate() const {
    double sum = 0;
    for (index_t i = 0; i < factor_.size; ++i) {
      const double reciprocal = static_cast<double>(factor_.reciprocal(i / kTileRows)[i % kTileRows]);
      sum += static_cast<double>(diagonal_[i]) * reciprocal * reciprocal;
    }
    return sum * 0x1p-24;
  }

  double gram_trace() const {
    double trace = 0;
    for (index_t i = 0; i < problem_.factored(); ++i) trace += static_cast<double>(*factor_.lower.at(i, i));
    return trace;
  }

  // Tiles of the gradient, `rows` x `columns` of them valid, for the samples from row0 and the features from column0
  // on.
  template <class Out>
  struct StoreGradient {
    const GradientTarget& target;
    const index_t* order;
    const T* root;
    index_t features;
    index_t row0, rows, column0, columns;

    template <int Vectors>
    [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
      const T coefficient = static_cast<T>(target.coefficient);
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) {
        if (row + i >= rows) break;
        const index_t sample = row0 + row + i;
        const T scale = root ? coefficient * root[sample] : coefficient;
        Out* out = static_cast<Out*>(target.data) + (order ? order[sample] : sample) * features + column0 + column;
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) {
          put(out + v * kLanes<T>, sums[i][v] * scale, columns - column - v * kLanes<T>);
        }
      }
    }
    [[gnu::always_inline]] void put(Out* out, Vec<T> value, index_t count) const {
      if (std::is_same_v<T, Out> && count >= kLanes<T>) {
        T* same = reinterpret_cast<T*>(out);
        store(same, target.add ? load(same) + value : value);
        return;
      }
      for (index_t lane = 0; lane < std::min<index_t>(count, kLanes<T>); ++lane) {
        out[lane] = static_cast<Out>(target.add ? static_cast<T>(out[lane]) + value[lane] : value[lane]);
      }
    }
  };

  template <class Out>
  void write_gradient(const GradientTarget& target, Team team) const {
    Workspace workspace;
    if (problem_.on_samples()) {
      write_features<Out>(target, team, workspace);
    } else {
      write_samples<Out>(target, team, workspace);
    }
  }

  // K^{-1} Z', a strip of features at a time.
  template <class Out>
  void write_features(const GradientTarget& target, Team team, Workspace& workspace) const {
    const index_t samples = problem_.samples, features = problem_.features, width = kStripPanels * kPanelWidth<T>;
    const Panels<T> strip{workspace.take<T>(samples * width), samples, kPanelWidth<T>};
    for (index_t first = team.rank() * width; first < features; first += team.size() * width) {
      const index_t columns = std::min(width, features - first);
      const StoreGradient<Out> finish{target, problem_.order, root_, features, 0, samples, first, columns};
      pack_columns(rows_, 0, samples, first, columns, strip);
      multiply(factor_.lower, samples, strip, columns, samples, Part::kAll, Team(), finish);
    }
  }

  // Z' M, a strip of samples at a time.
  template <class Out>
  void write_samples(const GradientTarget& target, Team team, Workspace& workspace) const {
    const index_t samples = problem_.samples, features = problem_.features, width = kPanelWidth<T>;
    const Panels<T> strip{workspace.take<T>(features * width), features, width};
    for (index_t first = team.rank() * width; first < samples; first += team.size() * width) {
      const index_t rows = std::min(width, samples - first);
      const StoreGradient<Out> finish{target, problem_.order, root_, features, first, rows, 0, features};
      pack_rows(rows_, first, rows, 0, features, strip);
      multiply(strip, rows, factor_.lower, features, features, Part::kAll, Team(), finish);
    }
  }

  GramProblem problem_;
  Rows<T> rows_;
  T* root_ = nullptr;
  Factor<T> factor_;
  T* diagonal_ = nullptr;  // of alpha * Gram
  Panels<T> packed_, work_;
  T* converted_ = nullptr;  // rows that cannot be read in place
  index_t block_ = 0;
};

// Runs body(solver, team) with a team of `threads`, in float32 unless the input is float64 or its rounding asks for
// more. `inverse` says whether the body needs the inverse.
template <class Body>
GramRate with_solver(const GramProblem& problem, bool inverse, int threads, Body&& body) {
  GramRate result;
  // A team meets at a handful of barriers, so it needs more work than independent items do.
  const int team_size = useful_threads(problem.flops(inverse) / 4, threads);
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    Workspace workspace;
    const GramSolver<T> solver(problem, inverse, team_size, workspace);
    parallel_team(team_size, [&](Team team) {
      if (solver.factor(result, team)) body(solver, team);
    });
  };
  if (problem.dtype != DType::f64) run(TypeTag<float>{});
  if (problem.dtype == DType::f64 || result.promote) run(TypeTag<double>{});
  return result;
}

// The batch loop of an op on Z: whole items to threads where there are enough of them, else all threads to each item.
template <class Body>
void for_each_item(const TensorView& Z, bool gradient, int threads, Body&& body) {
  const index_t items = batch_count(Z, 2);
  if (items >= threads) {
    const double flops = static_cast<double>(items) * gram_problem(Z, 0).flops(gradient);
    parallel_for(items, useful_threads(flops, threads), [&](index_t item) { body(item, 1); });
  } else {
    for (index_t item = 0; item < items; ++item) body(item, threads);
  }
}

// The rate of one problem, and its gradient where a target is given.
inline GramRate solve_gram(const GramProblem& problem, const GradientTarget* gradient, int threads) {
  return with_solver(problem, gradient != nullptr, threads, [&](const auto& solver, Team team) {
    if (gradient) solver.gradient(*gradient, team);
  });
}

// alpha M into a packed (d, d) array; the problem is on the features side.
template <class Out>
void solve_operator(const GramProblem& problem, Out* result, int threads) {
  const index_t size = problem.features;
  with_solver(problem, true, threads, [&](const auto& solver, Team team) {
    const auto& inverse = solver.invert(team);
    for (index_t i = team.rank(); i < size; i += team.size()) {
      for (index_t j = 0; j < size; ++j) {
        result[i * size + j] = static_cast<Out>(problem.alpha * static_cast<double>(*inverse.at(i, j)));
      }
    }
  });
}

}  // namespace subspan
