#include "core/dispatch.h"
#include "ops/coding_rate/sinkhorn.h"
#include "ops/coding_rate/sinkhorn_scaling.h"

namespace subspan {
namespace {

// W_i = P_i o (G_i - <G_i, P_i>) / temperature of one row, the gradient of the last half-step.
template <class T>
void softmax_backward(const T* P, const T* G, index_t columns, T over_temperature, T* W) {
  Vec<T> sums{};
  T dot = 0;
  index_t j = 0;
  for (; j + kLanes<T> <= columns; j += kLanes<T>) sums += load(P + j) * load(G + j);
  for (; j < columns; ++j) dot += P[j] * G[j];
  dot += sum_of<T>(sums);
  for (j = 0; j + kLanes<T> <= columns; j += kLanes<T>) {
    store(W + j, load(P + j) * (load(G + j) - dot) * over_temperature);
  }
  for (; j < columns; ++j) W[j] = P[j] * (G[j] - dot) * over_temperature;
}

// One call of the gradient of all half-steps. Backwards through them, with d_f and d_g the gradients of the potentials
// over the temperature, and Q = exp(S + f + g) / mass of the step's own potentials, recomputed from them:
//   column step  d_S -= Q d_g       d_f_i = -sum_j Q_ij d_g_j
//   row step     d_S -= R d_f       d_g_j = -sum_i R_ij d_f_i,   R = exp(S + f + g before) = Q ratio_j
// The ratio is a column's sum before the column step, at most the number of rows: one exponential serves both steps.
template <class T>
class Unrolled {
 public:
  explicit Unrolled(const SinkhornScaling<T>& scaling)
      : scaling_(scaling),
        d_g_(scaling.of_columns),
        ratio_(scaling.of_columns + scaling.padded),
        shift_(scaling.of_columns + 2 * scaling.padded) {}

  // d_S holds the gradient of the last half-step, and its blocks' column sums are the scaling's partial sums.
  void run(T* d_S, Team team) const {
    for (index_t step = scaling_.column_steps; step >= 1; --step) {
      const bool alone = step == 1 && scaling_.first_alone;
      team.barrier();
      begin(step, alone, team);
      team.barrier();
      scaling_.for_each_block(team, [&](index_t first, index_t end, T* sums) {
        std::fill(sums, sums + scaling_.padded, T(0));
        for (index_t row = first; row < end; ++row) row_backward(row, step, d_S + row * scaling_.columns, sums, team);
      });
    }
  }

 private:
  // This member's share of d_g, of Q's shift g - log(mass) and of the ratio.
  void begin(index_t step, bool alone, Team team) const {
    const T bits = scaling_.unit.bits;
    const T log_mass = std::log2(scaling_.column_mass) / bits;
    const T *before = scaling_.g(step - 1), *after = scaling_.g(step);
    scaling_.for_each_column_sum(team, [&](index_t j, Vec<T> total) {
      store(d_g_ + j, total);
      const Vec<T> shift = load(after + j) - log_mass;
      store(shift_ + j, shift);
      store(ratio_ + j, alone ? Vec<T>{} : exp2<T>((load(before + j) - shift) * bits));
    });
  }

  void row_backward(index_t row, index_t step, T* d_S, T* sums, Team team) const {
    const index_t columns = scaling_.columns, padded = scaling_.padded;
    T* q = scaling_.scratch(team, 0);
    scaling_.shifted_row(row, shift_, q, team);
    const T f = scaling_.f(step)[row];
    Vec<T> dots{};
    for (index_t j = 0; j < padded; j += kLanes<T>) {
      const Vec<T> power = exp2<T>((load(q + j) + f) * scaling_.unit.bits);
      store(q + j, power);
      dots += power * load(d_g_ + j);
    }
    const T d_f = -sum_of<T>(dots);
    T* change = scaling_.scratch(team, 1);
    for (index_t j = 0; j < padded; j += kLanes<T>) {
      const Vec<T> power = load(q + j), of_rows = power * load(ratio_ + j) * d_f;
      store(sums + j, load(sums + j) - of_rows);
      store(change + j, power * load(d_g_ + j) + of_rows);
    }
    index_t j = 0;
    for (; j + kLanes<T> <= columns; j += kLanes<T>) store(d_S + j, load(d_S + j) - load(change + j));
    for (; j < columns; ++j) d_S[j] -= change[j];
  }

  const SinkhornScaling<T>& scaling_;
  T *d_g_, *ratio_, *shift_;
};

template <class T>
struct Call {
  const TensorView &scores, &P, &upstream, &d_scores;
  double temperature;
  index_t iterations;
  int threads;

  T over_temperature() const {
    return static_cast<T>(std::min(1 / temperature, static_cast<double>(std::numeric_limits<T>::max())));
  }
  index_t rows() const { return scores.size(-2); }
  index_t columns() const { return scores.size(-1); }
  // The last half-step's gradient of one row, in both modes.
  T* row_gradient(index_t item, index_t row, T* scratch) const {
    const auto read = [&](const TensorView& view, T* converted) {
      const Rows<T> in(batch_item(view, 2, item), view.dtype, view.step(-2), view.step(-1));
      return in.read(row, 0, columns(), converted);
    };
    T* W = d_scores.ptr<T>() + (item * rows() + row) * columns();
    softmax_backward(read(P, scratch), read(upstream, scratch + columns()), columns(), over_temperature(), W);
    return W;
  }

  void last() const {
    const index_t items = batch_count(scores, 2);
    const double flops = 6.0 * static_cast<double>(scores.numel());
    const index_t chunk = 16;  // rows
    const index_t chunks = (rows() + chunk - 1) / chunk;
    parallel_for(items * chunks, useful_threads(flops, threads), [&](index_t work) {
      const index_t item = work / chunks, first = work % chunks * chunk;
      Workspace workspace;
      T* scratch = workspace.take<T>(2 * columns());
      for (index_t row = first; row < std::min(rows(), first + chunk); ++row) row_gradient(item, row, scratch);
    });
  }

  void unrolled() const {
    const index_t elements = rows() * columns();
    const double passes = static_cast<double>(iterations);
    for_each_scaling<T>(scores, temperature, iterations, true, passes, threads,
                        [&](const SinkhornScaling<T>& scaling, index_t item, Team team) {
                          scaling.solve(team);
                          last_step(scaling, item, team);
                          Unrolled<T>(scaling).run(d_scores.ptr<T>() + item * elements, team);
                        });
  }

  void last_step(const SinkhornScaling<T>& scaling, index_t item, Team team) const {
    scaling.for_each_block(team, [&](index_t first, index_t end, T* sums) {
      std::fill(sums, sums + scaling.padded, T(0));
      for (index_t row = first; row < end; ++row) {
        const T* W = row_gradient(item, row, scaling.scratch(team, 0));
        for (index_t j = 0; j < columns(); ++j) sums[j] += W[j];
      }
    });
  }
};

}  // namespace

void sinkhorn_gradient_cpu(const TensorView& scores, const TensorView& P, const TensorView& upstream,
                           const TensorView& d_scores, double temperature, index_t iterations, bool unrolled,
                           int threads) {
  if (scores.numel() == 0) return;
  dispatch_float(compute_dtype(scores.dtype), "sinkhorn_gradient", [&](auto tag) {
    const Call<typename decltype(tag)::type> call{scores, P, upstream, d_scores, temperature, iterations, threads};
    if (unrolled && iterations > 1) {
      call.unrolled();
    } else {
      call.last();
    }
  });
}

}  // namespace subspan
