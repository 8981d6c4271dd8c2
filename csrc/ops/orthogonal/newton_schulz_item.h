// newton_schulz of one matrix, by one thread or by all.
//
// All matrices of the iteration but X are polynomials in R_0, so they commute, and the iteration runs on the shorter
// side alone (known as Gram Newton-Schulz): with Z_k = a_k I + b_k R_k + c_k R_k^2 and Q_0 = I,
//   X_k = Q_k X_0,   Q_{k+1} = Q_k Z_k,   R_{k+1} = (R_k Z_k) Z_k.
// Products are symmetric: four of s^3 flops a step for the shorter side s, and 3 s^2 l for the longer side l in all.
//
// R_0 is rounded by eps |R_0|, where singular values that are small to begin with are lost; R_k has that error times
// |Q_k|^2, the square of how much the smallest values have grown. Before that exceeds a few eps the iteration starts
// anew from X_k, for 3 s^2 (l - s) flops more than going on would take. So it does before a last step that would undo
// all errors of X, which only X X^T shows.
#pragma once
#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "core/pack.h"
#include "core/product.h"
#include "core/symmetric_product.h"
#include "ops/orthogonal/newton_schulz.h"

namespace subspan {

// Multiples of eps, found to keep the error near twice that of the iteration on X itself, for values graded in many
// ways. Starting anew is nearly free where the sides are nearly equal.
inline double allowed_noise(index_t shorter, index_t longer) { return longer > 2 * shorter ? 12 : 4; }

constexpr index_t kPackedBlock = 256;  // of the longer side, packed by all members

// One matrix of the call.
struct SchulzItem {
  const void* data;
  void* result;
  DType dtype;
  index_t rows, columns;
  index_t row_step, column_step;

  index_t shorter() const { return std::min(rows, columns); }
  index_t longer() const { return std::max(rows, columns); }
  double flops(double steps) const {
    const double s = static_cast<double>(shorter()), l = static_cast<double>(longer());
    return s * s * (4 * steps * s + 3 * l);
  }
};

namespace detail {

// The matrix with indices of its shorter and its longer side.
template <class T>
class Sides {
 public:
  Sides(const void* data, DType dtype, index_t shorter, index_t longer, index_t short_step, index_t long_step)
      : shorter(shorter),
        longer(longer),
        short_rows_(long_step == 1 || short_step != 1),
        rows_(data, dtype, short_rows_ ? short_step : long_step, short_rows_ ? long_step : short_step) {}

  // to[k][i]: for i on the shorter side and k on the longer, and the other way round.
  void pack_short(index_t first, index_t count, index_t k, index_t depth, const Panels<T>& to) const {
    if (short_rows_) {
      pack_rows(rows_, first, count, k, depth, to);
    } else {
      pack_columns(rows_, k, depth, first, count, to);
    }
  }
  void pack_long(index_t first, index_t count, index_t k, index_t depth, const Panels<T>& to) const {
    if (short_rows_) {
      pack_columns(rows_, k, depth, first, count, to);
    } else {
      pack_rows(rows_, first, count, k, depth, to);
    }
  }
  // The largest absolute value; NaN where an entry is not finite.
  T largest() const {
    constexpr index_t chunk = 256;
    const index_t rows = short_rows_ ? shorter : longer, length = short_rows_ ? longer : shorter;
    T best = 0, scratch[chunk];
    for (index_t row = 0; row < rows; ++row) {
      for (index_t first = 0; first < length; first += chunk) {
        const index_t count = std::min(chunk, length - first);
        const T* in = rows_.read(row, first, count, scratch);
        for (index_t i = 0; i < count; ++i) {
          const T size = std::fabs(in[i]);
          if (!(size <= std::numeric_limits<T>::max())) return std::numeric_limits<T>::quiet_NaN();
          best = std::max(best, size);
        }
      }
    }
    return best;
  }

  index_t shorter, longer;

 private:
  bool short_rows_;
  Rows<T> rows_;
};

}  // namespace detail

// The largest factor by which a step multiplies singular values of at most one.
inline double largest_factor(const OddPolynomial& p) {
  double largest = std::max(std::fabs(p.a), std::fabs(p.a + p.b + p.c));
  const double turn = p.c != 0 ? -p.b / (2 * p.c) : -1;
  if (turn > 0 && turn < 1) largest = std::max(largest, std::fabs(p.a + p.b * turn / 2));
  return largest;
}

// Whether 1 is a fixed point that errors do not leave: of Newton's, Schulz's and the last polynomial of Polar Express.
inline bool corrects_errors(const OddPolynomial& p) {
  return std::fabs(p.a + p.b + p.c - 1) < 1e-6 && std::fabs(p.a + 3 * p.b + 5 * p.c) < 1e-6;
}

template <class T>
class SchulzIteration {
 public:
  // Takes all memory that the iteration needs, for a team of `threads`.
  SchulzIteration(const SchulzItem& item, double least_norm, int threads, Workspace& workspace)
      : item_(item),
        least_norm_(least_norm),
        wide_(item.rows <= item.columns),
        given_(item.data, item.dtype, item.shorter(), item.longer(), wide_ ? item.row_step : item.column_step,
               wide_ ? item.column_step : item.row_step),
        stored_(item.result, sizeof(T) == 4 ? DType::f32 : DType::f64, item.shorter(), item.longer(),
                wide_ ? item.columns : 1, wide_ ? 1 : item.columns),
        result_(static_cast<T*>(item.result)) {
    const index_t s = item.shorter(), l = item.longer();
    for (Symmetric<T>& matrix : matrices_) matrix = Symmetric<T>::take(s, workspace);
    const index_t depth = std::min(kPackedBlock, l);
    block_ = {workspace.take<T>(panel_elements<T>(depth, s)), depth, panel_width<T>(s)};
    const index_t panels = (l + kPanelWidth<T> - 1) / kPanelWidth<T>;
    group_ = std::clamp<index_t>(panels / (2 * threads), 1, 8) * kPanelWidth<T>;
    group_elements_ = round_up(panel_elements<T>(s, std::min(group_, l)), kLanes<T>);
    groups_ = workspace.take<T>(group_elements_ * threads);
    vectors_ = workspace.take<T>(2 * round_up(s, kLanes<T>));
  }

  // Every member runs the same steps; what follows the values of a matrix is the same for all.
  void run(const std::vector<OddPolynomial>& polynomials, Team team) const {
    auto [R, Y, Z, Q] = matrices_;
    const detail::Sides<T>* X = &given_;
    double scale = start(R, X, team);
    if (!(scale > 0)) return;
    const double allowed = allowed_noise(item_.shorter(), item_.longer());
    double growth = 1, norm = 0;  // a bound of |Q|^2, and |R_0|, since the last start
    bool fresh = true;            // Q = I
    for (std::size_t k = 0;; ++k) {
      const OddPolynomial& p = polynomials[k];
      if (fresh) norm = estimate_norm(R, vectors_, team);
      form_factor(p, R, Z, team);
      if (fresh) {
        complete_symmetric(Q, {T(0), &Z, static_cast<T>(scale), T(0)}, team);
      } else {
        multiply_complete(Q, Z, Y, team);
        std::swap(Q, Y);
      }
      team.barrier();
      if (k + 1 == polynomials.size()) break;
      growth *= largest_factor(p) * largest_factor(p);
      fresh = norm * growth > allowed && norm * std::pow(estimate_norm(Q, vectors_, team) / scale, 2) > allowed;
      fresh = fresh || (k + 2 == polynomials.size() && corrects_errors(polynomials[k + 1]));
      if (fresh) {
        apply(*X, Q, team);
        team.barrier();
        X = &stored_;
        gram(*X, R, team);
        complete_symmetric(R, {}, team);
        growth = scale = 1;
      } else {
        multiply_complete(R, Z, Y, team);
        team.barrier();
        multiply_complete(Y, Z, R, team);
      }
      team.barrier();
    }
    apply(*X, Q, team);
  }

 private:
  // R = X X^T for X = G / |G|; returns 1 / |X| of the X that is to be used, 0 where the result is written already. A
  // norm below the least counts as that.
  double start(const Symmetric<T>& R, const detail::Sides<T>*& X, Team team) const {
    gram(*X, R, team);
    double trace = sum_of_diagonal(R), least = least_norm_;
    // Outside, squares of entries overflow or lose digits.
    const double range = sizeof(T) == 4 ? 1e20 : 1e200;
    if (!(trace > 1 / range && trace < range)) {
      const T largest = X->largest();
      team.barrier();  // until everybody has read the trace
      if (!(largest > 0)) {
        if (team.rank() == 0) std::fill_n(result_, item_.rows * item_.columns, largest);
        return 0;
      }
      const int exponent = std::ilogb(largest);
      store_scaled(exponent, team);
      least = std::ldexp(least, -exponent);
      team.barrier();
      X = &stored_;
      gram(*X, R, team);
      trace = sum_of_diagonal(R);
    }
    team.barrier();
    trace = std::max(trace, least * least);
    complete_symmetric(R, {static_cast<T>(1 / trace)}, team);
    team.barrier();
    return 1 / std::sqrt(trace);
  }

  static double sum_of_diagonal(const Symmetric<T>& R) {
    double sum = 0;
    for (index_t i = 0; i < R.size; ++i) sum += static_cast<double>(R(i, i));
    return sum;
  }

  // G / 2^exponent as the result.
  void store_scaled(int exponent, Team team) const {
    const index_t columns = item_.columns;
    const Rows<T> rows(item_.data, item_.dtype, item_.row_step, item_.column_step);
    for (index_t row = team.rank(); row < item_.rows; row += team.size()) {
      T* out = result_ + row * columns;
      const T* in = rows.read(row, 0, columns, out);
      for (index_t i = 0; i < columns; ++i) out[i] = std::ldexp(in[i], -exponent);
    }
  }

  // The upper triangle of X X^T.
  void gram(const detail::Sides<T>& X, const Symmetric<T>& R, Team team) const {
    for (index_t k = 0; k < X.longer; k += kPackedBlock) {
      const index_t depth = std::min(kPackedBlock, X.longer - k);
      for (index_t c = team.rank() * block_.width; c < X.shorter; c += team.size() * block_.width) {
        const Panels<T> panel{block_.panel(c / block_.width), block_.depth, block_.width};
        X.pack_short(c, std::min(block_.width, X.shorter - c), k, depth, panel);
      }
      team.barrier();
      for (index_t part = 0; part < depth; part += kSumBlock) {
        const Panels<T> rows{block_.data + part * block_.width, block_.depth, block_.width};
        multiply(rows, X.shorter, rows, X.shorter, std::min(kSumBlock, depth - part), Part::kUpper, team,
                 StorePanels<T>{R.panels, k + part > 0, T(1)});
      }
      team.barrier();
    }
  }

  // Z = a I + b R + c R^2.
  void form_factor(const OddPolynomial& p, const Symmetric<T>& R, const Symmetric<T>& Z, Team team) const {
    if (p.c != 0) {
      multiply_commuting(R, R, Z, team);
      team.barrier();
    }
    complete_symmetric(Z, {static_cast<T>(p.c), &R, static_cast<T>(p.b), static_cast<T>(p.a)}, team);
    team.barrier();
  }

  static void multiply_complete(const Symmetric<T>& left, const Symmetric<T>& right, const Symmetric<T>& to,
                                Team team) {
    multiply_commuting(left, right, to, team);
    team.barrier();
    complete_symmetric(to, {}, team);
  }

  // The result is Q X. X may be the result itself: what is written was read before.
  void apply(const detail::Sides<T>& X, const Symmetric<T>& Q, Team team) const {
    const index_t s = X.shorter, l = X.longer, columns = item_.columns;
    T* packed = groups_ + team.rank() * group_elements_;
    for (index_t first = team.rank() * group_; first < l; first += team.size() * group_) {
      const index_t count = std::min(group_, l - first);
      const Panels<T> group{packed, s, panel_width<T>(count)};
      X.pack_long(first, count, 0, s, group);
      for (index_t k = 0; k < s; k += kSumBlock) {
        const index_t depth = std::min(kSumBlock, s - k);
        const Panels<T> part{group.data + k * group.width, s, group.width};
        if (wide_) {
          multiply(Q.from_row(k), s, part, count, depth, Part::kAll, Team(),
                   StoreRows<T>{result_ + first, columns, s, count, k > 0});
        } else {
          multiply(part, count, Q.from_row(k), s, depth, Part::kAll, Team(),
                   StoreRows<T>{result_ + first * columns, columns, count, s, k > 0});
        }
      }
    }
  }

  SchulzItem item_;
  double least_norm_;
  bool wide_;
  detail::Sides<T> given_, stored_;
  T* result_;
  std::array<Symmetric<T>, 4> matrices_;  // R, Y, Z, Q
  Panels<T> block_;                       // of kPackedBlock entries of the longer side
  index_t group_, group_elements_;        // entries of the longer side that a member works on at a time
  T* groups_;
  T* vectors_;
};

// run(item, threads) for all, the most work first. A matrix that is a large part of what is left is worked on by all
// threads, the rest one matrix to a thread.
template <class Item, class Run>
void deal_matrices(std::vector<Item>& items, double steps, int threads, Run&& run) {
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.flops(5) > b.flops(5); });
  double left = 0;
  for (const Item& item : items) left += item.flops(steps);
  std::size_t shared = 0;
  for (; shared < items.size(); ++shared) {
    const double flops = items[shared].flops(steps);
    if (flops * 4 * threads < left) break;
    run(items[shared], useful_threads(flops / 4, threads));
    left -= flops;
  }
  parallel_for(
      static_cast<index_t>(items.size() - shared), useful_threads(left, threads),
      [&](index_t i) { run(items[shared + static_cast<std::size_t>(i)], 1); }, 1);
}

}  // namespace subspan
