// The half-steps of one matrix: potentials f of the rows and g of the columns with P = exp((S + f + g) / temperature).
//
// A row step and the column step after it are one pass over the scores. The row step has the row's largest entry m and
// e = exp(S + g - m), which sum to s; then e / s is the matrix after the step and its column sums c are what the column
// step divides by: one exponential for both. What underflowed in e is lost to c, so where some c is so small that this
// could count, the columns are done again with a maximum of their own.
#pragma once
#include <limits>

#include "core/batch.h"
#include "core/exp.h"
#include "core/gemm.h"
#include "core/pack.h"
#include "core/parallel.h"
#include "core/workspace.h"

namespace subspan {

// Potentials are kept in a unit in which neither they nor the scores overflow at any temperature: `scores` converts to
// it, `bits` from it to logarithms to base 2. At low temperatures it is a multiple of the scores' own unit (an eighth,
// exact, leaves room for sums), at high ones it is bits.
template <class T>
struct SinkhornUnit {
  explicit SinkhornUnit(double temperature) {
    const double bits_per_score = 1.4426950408889634 / temperature;
    const double scale = std::min(bits_per_score, 0.125);
    scores = static_cast<T>(scale);
    bits = static_cast<T>(std::min(bits_per_score / scale, static_cast<double>(std::numeric_limits<T>::max())));
  }
  T scores, bits;
};

template <class T>
inline Vec<T> larger(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

template <class T>
inline T sum_of(Vec<T> v) {
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += v[i];
  return sum;
}

inline bool any_of(const char* flags, index_t count) { return std::find(flags, flags + count, 1) != flags + count; }

template <class T>
class SinkhornScaling {
 public:
  static constexpr index_t kGroup = 4;         // rows that share a pass over the column sums
  static constexpr index_t kColumnArrays = 3;  // that the gradient works with
  static constexpr T kNever = -std::numeric_limits<T>::infinity();

  // keep: every step's potentials are kept, for the gradient of all of them.
  SinkhornScaling(const TensorView& scores, index_t item, double temperature, index_t iterations, bool keep,
                  int team_size, Workspace& workspace)
      : unit(temperature),
        rows(scores.size(-2)),
        columns(scores.size(-1)),
        padded(round_up(columns, kLanes<T>)),
        column_steps(iterations / 2),
        first_alone(iterations % 2 == 0),
        column_mass(static_cast<T>(static_cast<double>(rows) / static_cast<double>(columns))),
        block_rows_(std::max<index_t>(32, (rows + 63) / 64)),
        in_(batch_item(scores, 2, item), scores.dtype, scores.step(-2), scores.step(-1)),
        keep_(keep) {
    const index_t kept = keep ? column_steps + 1 : 1;
    f_ = workspace.take<T>(kept * rows);
    g_ = workspace.take<T>(kept * padded);
    std::fill(f_, f_ + kept * rows, T(0));
    std::fill(g_, g_ + kept * padded, T(0));
    partial_ = workspace.take<T>(blocks() * padded);
    peak_ = workspace.take<T>(padded);
    scratch_ = workspace.take<T>(team_size * (kGroup + 2) * padded);
    low_ = workspace.take<char>(team_size);
    invalid = workspace.take<char>(blocks());
    if (keep) of_columns = workspace.take<T>(kColumnArrays * padded);
  }

  // Potentials after column step `step` = 1 ... column_steps; g(0) = 0. f(step) belongs to the row step before it.
  T* f(index_t step) const { return f_ + (keep_ ? step * rows : 0); }
  T* g(index_t step) const { return g_ + (keep_ ? step * padded : 0); }

  // All half-steps but the last, by the whole team; g(column_steps) is what the last one needs.
  void solve(Team team) const {
    for (index_t step = 1; step <= column_steps; ++step) {
      if (step == 1 && first_alone) {
        column_step(f(1), g(1), team);
      } else {
        row_and_column_step(g(step - 1), f(step), g(step), team);
      }
    }
  }

  // Blocks of rows, dealt to the team: body(first row, row after the last, this block's sums over columns).
  template <class Body>
  void for_each_block(Team team, Body&& body) const {
    for (index_t b = team.rank(); b < blocks(); b += team.size()) {
      body(b * block_rows_, std::min(rows, (b + 1) * block_rows_), partial_ + b * padded);
    }
  }

  // body(column, vector of the blocks' sums added in order) for this member's share of the columns; the team has met.
  template <class Body>
  void for_each_column_sum(Team team, Body&& body) const {
    const index_t vectors = padded / kLanes<T>;
    const index_t end = vectors * (team.rank() + 1) / team.size();
    for (index_t v = vectors * team.rank() / team.size(); v < end; ++v) {
      Vec<T> total{};
      for (index_t b = 0; b < blocks(); ++b) total += load(partial_ + b * padded + v * kLanes<T>);
      body(v * kLanes<T>, total);
    }
  }

  // out[j] = S_ij + shift_j, in the potentials' unit, -inf beyond the last column; returns the largest.
  T shifted_row(index_t row, const T* shift, T* out, Team team) const {
    const T* in = in_.read(row, 0, columns, scratch(team, kGroup + 1));
    Vec<T> peak = broadcast(kNever);
    index_t j = 0;
    for (; j + kLanes<T> <= columns; j += kLanes<T>) {
      const Vec<T> x = load(in + j) * unit.scores + load(shift + j);
      store(out + j, x);
      peak = larger<T>(peak, x);
    }
    if (j < columns) {
      Vec<T> x = load_partial(in + j, columns - j) * unit.scores + load(shift + j);
      for (index_t lane = columns - j; lane < kLanes<T>; ++lane) x[lane] = kNever;
      store(out + j, x);
      peak = larger<T>(peak, x);
    }
    T largest = kNever;
    for (int lane = 0; lane < kLanes<T>; ++lane) largest = peak[lane] > largest ? peak[lane] : largest;
    return largest;
  }

  // e[j] = exp(S_ij + shift_j + f), f such that the largest is 1; returns their sum: at least 1, or NaN for a row that
  // has no largest or is not finite.
  T exponentials(index_t row, const T* shift, T* e, T* f_row, Team team) const {
    const T peak = shifted_row(row, shift, e, team);
    Vec<T> sums{};
    for (index_t j = 0; j < padded; j += kLanes<T>) {
      const Vec<T> power = exp2<T>((load(e + j) - peak) * unit.bits);
      store(e + j, power);
      sums += power;
    }
    const T sum = sum_of<T>(sums);
    if (f_row) *f_row = -(peak + std::log2(sum) / unit.bits);
    return sum;
  }

  T* scratch(Team team, index_t row) const { return scratch_ + (team.rank() * (kGroup + 2) + row) * padded; }
  index_t blocks() const { return (rows + block_rows_ - 1) / block_rows_; }
  index_t block_of(index_t row) const { return row / block_rows_; }

  const SinkhornUnit<T> unit;
  const index_t rows, columns, padded, column_steps;
  const bool first_alone;   // the first half-step is of the columns
  const T column_mass;      // rows / columns, which the columns are to sum to
  char* invalid = nullptr;  // of each block, for the user
  T* of_columns = nullptr;  // kColumnArrays of the padded length, for the user, where potentials are kept

 private:
  void row_and_column_step(const T* g_before, T* f, T* g_after, Team team) const {
    for_each_block(team, [&](index_t first, index_t end, T* sums) {
      std::fill(sums, sums + padded, T(0));
      for (index_t row = first; row < end; row += kGroup) {
        const index_t group = std::min(kGroup, end - row);
        T over[kGroup] = {};
        for (index_t r = 0; r < group; ++r) {
          over[r] = 1 / exponentials(row + r, g_before, scratch(team, r), f + row + r, team);
        }
        if (group == kGroup) {
          add_rows(scratch(team, 0), over, sums);
        } else {
          for (index_t r = 0; r < group; ++r) add_row(scratch(team, r), over[r], sums);
        }
      }
    });
    team.barrier();
    // Below this, entries that underflowed could make up a rounding of the sum.
    constexpr T tiny = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
    const T least = tiny * static_cast<T>(rows);
    const T log_mass = std::log2(column_mass);
    bool low = false;
    for_each_column_sum(team, [&](index_t column, Vec<T> total) {
      for (index_t j = column; j < std::min(columns, column + kLanes<T>); ++j) {
        const T sum = total[j - column];
        low |= sum < least;
        g_after[j] = g_before[j] + (log_mass - std::log2(sum)) / unit.bits;
      }
    });
    low_[team.rank()] = low;
    team.barrier();
    if (any_of(low_, team.size())) column_step(f, g_after, team);
  }

  // g = log(mass) - logsumexp over i of S_ij + f_i. A column that no row may use has no such g: it keeps 0.
  void column_step(const T* f, T* g, Team team) const {
    T* x = scratch(team, 0);
    const T* zero = scratch(team, kGroup);
    std::fill(scratch(team, kGroup), scratch(team, kGroup) + padded, T(0));
    for_each_block(team, [&](index_t first, index_t end, T* peaks) {
      std::fill(peaks, peaks + padded, kNever);
      for (index_t row = first; row < end; ++row) {
        shifted_row(row, zero, x, team);
        for (index_t j = 0; j < padded; j += kLanes<T>)
          store(peaks + j, larger<T>(load(peaks + j), load(x + j) + f[row]));
      }
    });
    team.barrier();
    const index_t vectors = padded / kLanes<T>;
    for (index_t v = vectors * team.rank() / team.size(); v < vectors * (team.rank() + 1) / team.size(); ++v) {
      Vec<T> peak = broadcast(kNever);
      for (index_t b = 0; b < blocks(); ++b) peak = larger<T>(peak, load(partial_ + b * padded + v * kLanes<T>));
      store(peak_ + v * kLanes<T>, peak == kNever ? Vec<T>{} : peak);
    }
    team.barrier();
    for_each_block(team, [&](index_t first, index_t end, T* sums) {
      std::fill(sums, sums + padded, T(0));
      for (index_t row = first; row < end; ++row) {
        shifted_row(row, zero, x, team);
        for (index_t j = 0; j < padded; j += kLanes<T>) {
          const Vec<T> power = exp2<T>((load(x + j) + f[row] - load(peak_ + j)) * unit.bits);
          store(sums + j, load(sums + j) + power);
        }
      }
    });
    team.barrier();
    const T log_mass = std::log2(column_mass);
    for_each_column_sum(team, [&](index_t column, Vec<T> total) {
      for (index_t j = column; j < std::min(columns, column + kLanes<T>); ++j) {
        const T sum = total[j - column];
        g[j] = sum == 0 ? T(0) : (log_mass - std::log2(sum)) / unit.bits - peak_[j];
      }
    });
    team.barrier();
  }

  void add_row(const T* e, T factor, T* sums) const {
    for (index_t j = 0; j < padded; j += kLanes<T>) store(sums + j, load(sums + j) + load(e + j) * factor);
  }
  // As four times add_row, with one read and write of the sums.
  void add_rows(const T* e, const T (&factor)[kGroup], T* sums) const {
    for (index_t j = 0; j < padded; j += kLanes<T>) {
      Vec<T> sum = load(sums + j);
#pragma GCC unroll 4
      for (index_t r = 0; r < kGroup; ++r) sum += load(e + r * padded + j) * factor[r];
      store(sums + j, sum);
    }
  }

  const index_t block_rows_;
  Rows<T> in_;
  bool keep_;
  T *f_, *g_;
  T* partial_;  // one row of sums per block
  T* peak_;
  T* scratch_;  // per member: kGroup rows, a row of zeros, a converted row of the input
  char* low_;   // whether a member saw a column sum that is too small
};

// body(scaling, item, team) for every item: whole items to threads where there are enough of them, else all threads to
// each item. `passes`: how many exponentials are taken of each entry.
template <class T, class Body>
void for_each_scaling(const TensorView& scores, double temperature, index_t iterations, bool keep, double passes,
                      int threads, Body&& body) {
  constexpr double flops_per_exponential = 25;
  const index_t items = batch_count(scores, 2);
  const double pass = flops_per_exponential * static_cast<double>(scores.size(-1) * scores.size(-2));
  const auto one = [&](index_t item, int team_size) {
    Workspace workspace;
    const SinkhornScaling<T> scaling(scores, item, temperature, iterations, keep, team_size, workspace);
    parallel_team(team_size, [&](Team team) { body(scaling, item, team); });
  };
  if (items >= threads) {
    const double flops = pass * passes * static_cast<double>(items);
    parallel_for(items, useful_threads(flops, threads), [&](index_t i) { one(i, 1); });
  } else {
    // The team meets in every pass, so one pass must be worth a thread.
    for (index_t i = 0; i < items; ++i) one(i, useful_threads(pass, threads));
  }
}

}  // namespace subspan
