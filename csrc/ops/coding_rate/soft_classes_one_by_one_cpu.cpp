#include <memory>
#include <vector>

#include "ops/coding_rate/soft_classes.h"

namespace subspan {
namespace {

template <class T>
Vec<T> first_lanes(Vec<T> value, index_t count) {
  for (index_t lane = std::max<index_t>(count, 0); lane < kLanes<T>; ++lane) value[lane] = 0;
  return value;
}

// kPanelWidth samples: their rows, the gradient they collect, and their energies z_i M z_i for one class at a time.
template <class T>
class Strip {
 public:
  Strip(const Rows<T>& rows, index_t first, index_t count, index_t features, Workspace& workspace)
      : features_(features), step_(round_up(features, kPanelWidth<T>)), count_(count) {
    packed_ = {workspace.take<T>(features * kPanelWidth<T>), features, kPanelWidth<T>};
    rows_ = workspace.take<T>(count * step_);
    sums_ = workspace.take<T>(count * step_);
    pack_rows(rows, first, count, 0, features, packed_);
    for (index_t i = 0; i < count; ++i) {
      T* row = rows_ + i * step_;
      const T* in = rows.read(first + i, 0, features, row);
      if (in != row) std::copy(in, in + features, row);
      std::fill(row + features, row + step_, T(0));
    }
    std::fill(sums_, sums_ + count * step_, T(0));
  }

  // Adds share_i z_i M to the gradient and gives the energies.
  template <class Out>
  void add(const Panels<T>& inverse, const T* share, Out* energies) {
    Vec<T> energy[kPanelWidth<T>] = {};
    multiply(packed_, count_, inverse, features_, features_, Part::kAll, Team(), Finish{*this, share, energy});
    for (index_t i = 0; i < count_; ++i) {
      T sum = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) sum += energy[i][lane];
      energies[i] = static_cast<Out>(sum);
    }
  }

  template <class Out>
  void add_to(Out* d_Z) const {
    for (index_t i = 0; i < count_; ++i) {
      for (index_t k = 0; k < features_; ++k) d_Z[i * features_ + k] += static_cast<Out>(sums_[i * step_ + k]);
    }
  }

 private:
  struct Finish {
    const Strip& strip;
    const T* share;
    Vec<T>* energy;

    template <int Vectors>
    [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
      const index_t step = strip.step_, left = strip.features_ - column;
      for (int i = 0; i < kTileRows && row + i < strip.count_; ++i) {
        const T* z = strip.rows_ + (row + i) * step + column;
        T* total = strip.sums_ + (row + i) * step + column;
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) {
          const index_t lane = v * kLanes<T>;
          // What the product holds beyond the last feature is not defined.
          const Vec<T> value = left - lane < kLanes<T> ? first_lanes<T>(sums[i][v], left - lane) : sums[i][v];
          energy[row + i] += value * load(z + lane);
          store(total + lane, load(total + lane) + value * share[row + i]);
        }
      }
    }
  };

  index_t features_, step_, count_;
  Panels<T> packed_;
  T *rows_, *sums_;
};

// The inverses of some classes: in the type of the op, or in float64 where a class was promoted.
template <class T>
class Inverses {
 public:
  Inverses(index_t count, index_t features, Workspace& workspace)
      : features_(features),
        depth_(round_up(features, kTileRows)),
        plain_(workspace.take<T>(count * panel_elements<T>(depth_, features))),
        promoted_(static_cast<std::size_t>(count)) {}

  // Of the type of the op, or wider for a promoted class.
  template <class U>
  void keep(index_t c, const Panels<U>& inverse) {
    const index_t elements = panel_elements<U>(depth_, features_);
    if constexpr (std::is_same_v<U, T>) {
      std::copy_n(inverse.data, elements, plain(c).data);
    } else if constexpr (sizeof(U) > sizeof(T)) {
      promoted_[static_cast<std::size_t>(c)].reset(new U[static_cast<std::size_t>(elements)]);
      std::copy_n(inverse.data, elements, promoted_[static_cast<std::size_t>(c)].get());
    }
  }

  Panels<T> plain(index_t c) const {
    return {plain_ + c * panel_elements<T>(depth_, features_), depth_, panel_width<T>(features_)};
  }
  bool is_promoted(index_t c) const { return promoted_[static_cast<std::size_t>(c)] != nullptr; }
  Panels<double> promoted(index_t c) const {
    return {promoted_[static_cast<std::size_t>(c)].get(), depth_, panel_width<double>(features_)};
  }

 private:
  index_t features_, depth_;
  T* plain_;
  std::vector<std::unique_ptr<double[]>> promoted_;
};

// Log determinant of class j, and its inverse to `inverses` where a gradient is wanted.
template <class T>
double solve_class(const SoftClasses<T>& soft, index_t j, index_t place, Inverses<T>* inverses, int threads) {
  Workspace workspace;
  const index_t samples = soft.all.samples;
  double* roots = workspace.take<double>(samples);
  T* scratch = workspace.take<T>(samples);
  const T* pi = soft.membership.read(j, 0, samples, scratch);
  for (index_t i = 0; i < samples; ++i) roots[i] = std::sqrt(static_cast<double>(pi[i]));
  GramProblem problem = soft.all;
  problem.root_weights = roots;
  problem.alpha = soft.alpha(j);
  problem.side = Side::kFeatures;
  return with_solver(problem, inverses != nullptr, threads,
                     [&](const auto& solver, Team team) {
                       if (!inverses) return;
                       const auto& inverse = solver.invert(team);
                       if (team.rank() == 0) inverses->keep(place, inverse);
                     })
      .log_det;
}

template <class T>
void add_gradients(const SoftClasses<T>& soft, const index_t* chosen, index_t count, const Inverses<T>& inverses,
                   index_t first) {
  Workspace workspace;
  const index_t samples = soft.all.samples, features = soft.all.features;
  const index_t strip_rows = std::min<index_t>(kPanelWidth<T>, samples - first);
  const auto add = [&](auto tag, bool promoted) {
    using U = typename decltype(tag)::type;
    const Rows<U> rows(soft.all.data, soft.all.dtype, soft.all.row_step, soft.all.column_step);
    for (index_t part = 0; part < strip_rows; part += kPanelWidth<U>) {
      Workspace inner;
      const index_t begin = first + part, width = std::min<index_t>(kPanelWidth<U>, strip_rows - part);
      Strip<U> strip(rows, begin, width, features, inner);
      T scratch[kPanelWidth<U>];
      U share[kPanelWidth<U>];
      for (index_t c = 0; c < count; ++c) {
        if (inverses.is_promoted(c) != promoted) continue;
        const index_t j = chosen[c];
        const T* pi = soft.membership.read(j, begin, width, scratch);
        for (index_t i = 0; i < width; ++i) share[i] = static_cast<U>(soft.row_factor(j) * static_cast<double>(pi[i]));
        T* energies = soft.d_membership + j * samples + begin;
        if constexpr (std::is_same_v<U, T>) {
          strip.add(inverses.plain(c), share, energies);
        } else {
          strip.add(inverses.promoted(c), share, energies);
        }
      }
      strip.add_to(soft.d_Z + begin * features);
    }
  };
  bool any_promoted = false;
  for (index_t c = 0; c < count; ++c) any_promoted |= inverses.is_promoted(c);
  add(TypeTag<T>{}, false);
  if constexpr (sizeof(T) == 4) {
    if (any_promoted) add(TypeTag<double>{}, true);
  }
}

}  // namespace

template <class T>
void soft_classes_one_by_one(const SoftClasses<T>& soft, const index_t* chosen, index_t count) {
  Workspace workspace;
  const index_t samples = soft.all.samples;
  Inverses<T> inverses(soft.gradient() ? count : 0, soft.all.features, workspace);
  Inverses<T>* wanted = soft.gradient() ? &inverses : nullptr;
  const auto solve = [&](index_t c, int threads) {
    soft.log_det[chosen[c]] = solve_class(soft, chosen[c], c, wanted, threads);
  };
  GramProblem one = soft.all;
  one.side = Side::kFeatures;
  const int threads = useful_threads(static_cast<double>(count) * one.flops(soft.gradient()), soft.threads);
  if (count >= threads) {
    parallel_for(count, threads, [&](index_t c) { solve(c, 1); });
  } else {
    for (index_t c = 0; c < count; ++c) solve(c, threads);
  }
  if (!soft.gradient()) return;
  const index_t strips = (samples + kPanelWidth<T> - 1) / kPanelWidth<T>;
  parallel_for(strips, threads,
               [&](index_t strip) { add_gradients(soft, chosen, count, inverses, strip * kPanelWidth<T>); });
}

template void soft_classes_one_by_one(const SoftClasses<float>&, const index_t*, index_t);
template void soft_classes_one_by_one(const SoftClasses<double>&, const index_t*, index_t);

}  // namespace subspan
