// Solves gram problems: the four steps of gram_problem.h, for one item and a team of threads.
#pragma once
#include <iterator>

#include "core/row_dots.h"
#include "ops/coding_rate/gram_factor.h"
#include "ops/coding_rate/gram_gradient.h"

namespace subspan {

template <class T>
class GramSolver {
 public:
  // Takes all shared memory, so that the steps have no reason to throw while a team waits.
  GramSolver(const GramProblem& problem, bool gradient, int team_size, Workspace& workspace)
      : problem_(problem),
        rows_(problem.data, problem.dtype, problem.row_step, problem.column_step),
        factor_(problem.factored(), gradient, workspace) {
    const index_t size = problem.factored();
    if (problem.order) rows_ = rows_.gathered(problem.order);
    if (problem.root_weights) {
      root_ = workspace.take<T>(problem.samples);
      std::copy(problem.root_weights, problem.root_weights + problem.samples, root_);
      rows_ = rows_.scaled(root_);
    }
    block_ = kPackBytes / (panel_width<T>(size) * static_cast<index_t>(sizeof(T)));
    block_ = std::min(block_, round_up(problem.summed(), kLanes<T>));
    packed_ = {workspace.take<T>(panel_elements<T>(block_, size) * team_size), block_, panel_width<T>(size)};
    parts_ = uses_dots() ? 1 : part_count();
    partial_ = workspace.take<T>((parts_ - 1) * panel_elements<T>(factor_.matrix().depth, size));
    if (uses_dots() && !rows_.in_place()) converted_ = workspace.take<T>(size * problem.summed() * team_size);
  }

  // The steps below are run by every member of the team; `result` is complete when all have returned.

  // Gram matrix, factor and log determinant. False where the item must be promoted to float64.
  bool factor(GramRate& result, Team team) const {
    form_gram(team);
    return factor_.factor(result, team);
  }

  // The full symmetric M (features side) or K^{-1} (samples side).
  const Panels<T>& invert(Team team) const { return factor_.invert(team); }

  void gradient(const GradientTarget& target, Team team) const {
    invert(team);
    target.is_double ? write_gradient<double>(target, team) : write_gradient<float>(target, team);
  }

 private:
  static constexpr index_t kDotSamples = 112, kDotFeatures = 256;  // measured: packing pays beyond
  static constexpr index_t kPackBytes = 24 << 10;                  // of a packed panel: half of a first-level cache

  // How many partial sums a long Gram matrix has: as many as share it without packing anything twice. It follows from
  // the problem alone, so that results do not depend on the number of threads. Each costs a pass over one more matrix.
  index_t part_count() const {
    const index_t most = problem_.summed() / std::max<index_t>({2 * problem_.factored(), 4 * block_, 1});
    return most >= 4 ? 4 : most >= 2 ? 2 : 1;
  }

  Panels<T> part(index_t index) const {
    const Panels<T>& whole = factor_.matrix();
    if (index == 0) return whole;
    return {partial_ + (index - 1) * panel_elements<T>(whole.depth, problem_.factored()), whole.depth, whole.width};
  }

  void form_gram(Team team) const {
    const index_t size = problem_.factored();
    const index_t summed = problem_.summed();
    if (summed == 0) {
      if (team.rank() == 0) std::fill_n(factor_.matrix().data, panel_elements<T>(factor_.matrix().depth, size), T(0));
      team.barrier();
      return;
    }
    if (uses_dots()) {
      T* converted = converted_ + team.rank() * size * summed;
      row_dots(rows_, size, summed, static_cast<T>(problem_.alpha), factor_.matrix(), converted, team);
      team.barrier();
      return;
    }
    // Members of one part meet nowhere: each packs for itself and computes its share of the tiles. Packing twice costs
    // less than a barrier for every block and fetching half of it from another core's cache.
    const int shares = std::max(1, team.size() / static_cast<int>(parts_));
    const int groups = team.size() / shares;
    const index_t length = round_up((summed + parts_ - 1) / parts_, block_);
    if (team.rank() < shares * groups) {
      for (index_t p = team.rank() / shares; p < parts_; p += groups)
        add_rows(p * length, std::min(summed, (p + 1) * length), part(p), team.rank(),
                 Team(team.rank() % shares, shares));
    }
    team.barrier();
    if (parts_ > 1) {
      add_parts(team);
      team.barrier();
    }
  }

  // to = the sum over rows (or columns) begin ... end - 1, times alpha; tiles are dealt to the team.
  void add_rows(index_t begin, index_t end, const Panels<T>& to, index_t buffer, Team team) const {
    const index_t size = problem_.factored();
    const Panels<T> packed{packed_.data + buffer * panel_elements<T>(block_, size), block_, packed_.width};
    for (index_t k = begin; k < end; k += block_) {
      const index_t depth = std::min(block_, end - k);
      if (problem_.on_samples()) {
        pack_rows(rows_, 0, size, k, depth, packed);
      } else {
        pack_columns(rows_, k, depth, 0, size, packed);
      }
      const T scale = k + depth == end ? static_cast<T>(problem_.alpha) : T(1);
      const StorePanels<T> finish{to, k > begin, scale};
      multiply(packed, size, packed, size, depth, Part::kUpper, team, [&](index_t row, index_t column, auto& sums) {
        finish(row, column, sums);
        // The tile below is next; the matrix does not fit the second-level cache beside what is multiplied.
        const T* next = to.at(row, column) + kTileRows * team.size() * to.width;
        for (int i = 0; i < kTileRows; ++i, next += to.width) {
          for (int v = 0; v < static_cast<int>(std::size(sums[0])); ++v) __builtin_prefetch(next + v * kLanes<T>, 1);
        }
      });
    }
  }

  // The first part becomes the sum of all, rows dealt to the team. What the micro-kernel has not written is not read.
  void add_parts(Team team) const {
    const Panels<T>& sum = factor_.matrix();
    const index_t size = problem_.factored(), width = sum.width;
    for (index_t panel = 0, turn = 0; panel * width < size; ++panel) {
      const index_t rows = std::min(sum.depth, (panel + 1) * width);
      for (index_t row = 0; row < rows; row += kTileRows, ++turn) {
        if (turn % team.size() != team.rank()) continue;
        const index_t first = row > panel * width ? (row - panel * width) / kLanes<T> * kLanes<T> : 0;
        for (index_t r = row; r < std::min(rows, row + kTileRows); ++r) {
          for (index_t c = first; c < std::min(width, round_up(size - panel * width, kLanes<T>)); c += kLanes<T>) {
            T* target = sum.panel(panel) + r * width + c;
            Vec<T> total = load(target);
            for (index_t p = 1; p < parts_; ++p) total += load(part(p).panel(panel) + r * width + c);
            store(target, total);
          }
        }
      }
    }
  }

  bool uses_dots() const {
    return problem_.on_samples() && problem_.samples <= kDotSamples && problem_.features >= kDotFeatures;
  }

  template <class Out>
  void write_gradient(const GradientTarget& target, Team team) const {
    const GradientRows<T> of{rows_, problem_.samples, problem_.features, problem_.order, root_};
    if (problem_.on_samples()) {
      write_left_product<Out>(factor_.matrix(), of, target, team);
    } else {
      write_right_product<Out>(factor_.matrix(), of, target, team);
    }
  }

  GramProblem problem_;
  Rows<T> rows_;
  T* root_ = nullptr;
  GramFactor<T> factor_;
  Panels<T> packed_;
  T* converted_ = nullptr;  // rows that cannot be read in place
  index_t block_ = 0;
  index_t parts_ = 1;     // partial sums of the Gram matrix
  T* partial_ = nullptr;  // all but the first
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
