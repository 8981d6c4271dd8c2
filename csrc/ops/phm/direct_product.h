// y = x W^T for few rows x, bound by the memory of S, of which every entry is read once.
//   y[(p, a)] = sum_i <x'[p, i], S_i[a]> with x'[p, i] = sum_q A[i, p, q] x_q, which is mixed beforehand.
#pragma once
#include "core/pack.h"
#include "ops/phm/factors.h"

namespace subspan {

namespace detail {

constexpr int kDirectRows = 4;   // of S at once
constexpr int kDirectMixed = 6;  // rows x' at most: with as many accumulators as registers hold

// sums[s][m] = sum over terms and columns of rows of S times mixed rows, which end in zeros up to whole vectors.
template <int Mixed, class T>
[[gnu::always_inline]] inline void dot_rows(const T* const (&rows)[kDirectRows], const Factors<T>& w, const T* mixed,
                                            index_t mixed_step, index_t term_length,
                                            Vec<T> (&sums)[kDirectRows][Mixed]) {
#pragma GCC unroll 4
  for (int s = 0; s < kDirectRows; ++s) {
#pragma GCC unroll 6
    for (int m = 0; m < Mixed; ++m) sums[s][m] = Vec<T>{};
  }
  const auto step = [&](const T* in, auto&& read) {
    Vec<T> row[kDirectRows];
#pragma GCC unroll 4
    for (int s = 0; s < kDirectRows; ++s) row[s] = read(s);
#pragma GCC unroll 6
    for (int m = 0; m < Mixed; ++m) {
      const Vec<T> entry = load(in + m * mixed_step);
#pragma GCC unroll 4
      for (int s = 0; s < kDirectRows; ++s) sums[s][m] += row[s] * entry;
    }
  };
  for (index_t i = 0; i < w.terms; ++i, mixed += term_length) {
    const index_t offset = i * w.term_step;
    index_t b = 0;
    for (; b + kLanes<T> <= w.k; b += kLanes<T>) {
      step(mixed + b, [&](int s) { return load(rows[s] + offset + b); });
    }
    if (b < w.k) step(mixed + b, [&](int s) { return load_first(rows[s] + offset + b, w.k - b); });
  }
}

}  // namespace detail

template <class T>
class DirectProduct {
 public:
  DirectProduct(const Factors<T>& factors, index_t rows) : w_(factors), rows_(rows) {}

  void operator()(const Rows<T>& x, const T* bias, T* y, int threads) const {
    if (rows_ == 0 || w_.rows() == 0) return;
    const index_t length = round_up(w_.k, kLanes<T>), mixed_step = w_.terms * length, mixed_rows = rows_ * w_.p;
    Workspace workspace;
    T* mixed = workspace.take<T>(mixed_rows * mixed_step);
    parallel_team(threads, [&](Team team) {
      mix(x, mixed, length, team);
      team.barrier();
      const index_t tiles = (w_.l + detail::kDirectRows - 1) / detail::kDirectRows;
      const index_t end = tiles * (team.rank() + 1) / team.size();
      const index_t parts = (mixed_rows + detail::kDirectMixed - 1) / detail::kDirectMixed;
      for (index_t tile = tiles * team.rank() / team.size(); tile < end; ++tile) {
        for (index_t part = 0; part < parts; ++part) {
          const index_t first = mixed_rows * part / parts, next = mixed_rows * (part + 1) / parts;
          multiply(tile * detail::kDirectRows, mixed + first * mixed_step, first, next - first, length, bias, y);
        }
      }
    });
  }

 private:
  void mix(const Rows<T>& x, T* mixed, index_t length, Team team) const {
    Workspace own;
    T* scratch = own.take<T>(w_.columns());
    for (index_t m = team.rank(); m < rows_ * w_.p; m += team.size()) {
      T* to = mixed + m * w_.terms * length;
      const T* row = x.read(m / w_.p, 0, w_.columns(), scratch);
      mix_rows(row, w_.k, w_.q, w_.by_term + m % w_.p * w_.terms * w_.q, w_.terms, w_.k, to, length);
      for (index_t i = 0; i < w_.terms; ++i) std::fill(to + i * length + w_.k, to + (i + 1) * length, T(0));
    }
  }

  void multiply(index_t a, const T* mixed, index_t first, index_t count, index_t length, const T* bias, T* y) const {
    switch (count) {
      case 1: return multiply_part<1>(a, mixed, first, length, bias, y);
      case 2: return multiply_part<2>(a, mixed, first, length, bias, y);
      case 3: return multiply_part<3>(a, mixed, first, length, bias, y);
      case 4: return multiply_part<4>(a, mixed, first, length, bias, y);
      case 5: return multiply_part<5>(a, mixed, first, length, bias, y);
      default: return multiply_part<6>(a, mixed, first, length, bias, y);
    }
  }

  template <int Mixed>
  void multiply_part(index_t a, const T* mixed, index_t first, index_t length, const T* bias, T* y) const {
    constexpr int tile = detail::kDirectRows;
    const T* rows[tile];  // the last one again, where there are fewer
    for (int s = 0; s < tile; ++s) rows[s] = w_.S + std::min(a + s, w_.l - 1) * w_.row_step;
    Vec<T> sums[tile][Mixed];
    detail::dot_rows<Mixed>(rows, w_, mixed, w_.terms * length, length, sums);
    T totals[tile * detail::kDirectMixed + kLanes<T>];
    detail::sum_lanes_of<tile * Mixed>(&sums[0][0], totals);
    for (int s = 0; s < std::min<index_t>(tile, w_.l - a); ++s) {
      for (int m = 0; m < Mixed; ++m) {
        const index_t row = (first + m) / w_.p, output = (first + m) % w_.p * w_.l + a + s;
        y[row * w_.rows() + output] = totals[s * Mixed + m] + (bias ? bias[output] : T(0));
      }
    }
  }

  const Factors<T>& w_;
  index_t rows_;
};

}  // namespace subspan
