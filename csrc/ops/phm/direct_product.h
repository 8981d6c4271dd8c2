// y = x W^T for a row of x or two, bound by the memory of S, of which every entry is read once.
//   y[(p, a)] = sum_i <x'[p, i], S_i[a]> with x'[p, i] = sum_q A[i, p, q] x_q, which is mixed beforehand.
#pragma once
#include "core/pack.h"
#include "ops/phm/factors.h"

namespace subspan {

namespace detail {

constexpr int kDirectRows = 4;   // of S at once
constexpr int kDirectMixed = 6;  // rows x' at most: with as many accumulators as registers hold

// Of the cache that rows of S stay in while all mixed rows pass by.
constexpr index_t kDirectBytes = 24 << 10;

// sums[s][m] += rows of S times mixed rows, which end in zeros up to whole vectors, over terms begin ... end - 1. What
// lies `ahead` of these rows, unless that is 0, is asked for: the hardware follows a stream only within a page.
template <int Mixed, class T>
[[gnu::always_inline]] inline void dot_rows(const T* const (&rows)[kDirectRows], const Factors<T>& w, const T* mixed,
                                            index_t mixed_step, index_t term_length, index_t begin, index_t end,
                                            index_t ahead, Vec<T> (&sums)[kDirectRows][Mixed]) {
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
  mixed += begin * term_length;
  for (index_t i = begin; i < end; ++i, mixed += term_length) {
    const index_t offset = i * w.term_step;
    index_t b = 0;
    for (; b + kLanes<T> <= w.k; b += kLanes<T>) {
      if (ahead > 0) {
#pragma GCC unroll 4
        for (int s = 0; s < kDirectRows; ++s) __builtin_prefetch(rows[s] + offset + b + ahead, 0, 2);
      }
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
    parallel_team(threads, [&](Team team) {
      Workspace own;
      T* mixed = own.take<T>(mixed_rows * mixed_step);
      mix(x, mixed, length);
      const index_t tiles = (w_.l + detail::kDirectRows - 1) / detail::kDirectRows;
      const index_t end = tiles * (team.rank() + 1) / team.size();
      const index_t parts = (mixed_rows + detail::kDirectMixed - 1) / detail::kDirectMixed;
      const index_t row_bytes = detail::kDirectRows * length * static_cast<index_t>(sizeof(T));
      const index_t terms = parts == 1 ? w_.terms : std::max<index_t>(1, detail::kDirectBytes / (row_bytes + 1));
      Vec<T>* kept = own.take<Vec<T>>(parts * detail::kDirectRows * detail::kDirectMixed);
      for (index_t tile = tiles * team.rank() / team.size(); tile < end; ++tile) {
        for (index_t i = 0; i < w_.terms; i += terms) {
          Call call{tile * detail::kDirectRows, i, std::min(w_.terms, i + terms), length, mixed, kept, bias, y};
          for (index_t part = 0; part < parts; ++part, call.kept += detail::kDirectRows * detail::kDirectMixed) {
            call.first = mixed_rows * part / parts;
            multiply(call, mixed_rows * (part + 1) / parts - call.first);
          }
        }
      }
    });
  }

 private:
  // By every member for itself: to fetch what another has mixed takes longer.
  void mix(const Rows<T>& x, T* mixed, index_t length) const {
    Workspace own;
    T* scratch = own.take<T>(w_.columns());
    for (index_t m = 0; m < rows_ * w_.p; ++m) {
      T* to = mixed + m * w_.terms * length;
      const T* row = x.read(m / w_.p, 0, w_.columns(), scratch);
      mix_rows(row, w_.k, w_.q, w_.by_term + m % w_.p * w_.terms * w_.q, w_.terms, w_.k, to, length);
      for (index_t i = 0; i < w_.terms; ++i) std::fill(to + i * length + w_.k, to + (i + 1) * length, T(0));
    }
  }

  // Rows a ... of S with terms begin ... end - 1, and mixed rows first ...
  struct Call {
    index_t a, begin, end, length;
    const T* mixed;
    Vec<T>* kept;  // sums between one part of the terms and the next
    const T* bias;
    T* y;
    index_t first = 0;
  };

  void multiply(const Call& call, index_t count) const {
    switch (count) {
      case 1: return multiply_part<1>(call);
      case 2: return multiply_part<2>(call);
      case 3: return multiply_part<3>(call);
      case 4: return multiply_part<4>(call);
      case 5: return multiply_part<5>(call);
      default: return multiply_part<6>(call);
    }
  }

  template <int Mixed>
  void multiply_part(const Call& call) const {
    constexpr int tile = detail::kDirectRows;
    const T* rows[tile];  // the last one again, where there are fewer
    for (int s = 0; s < tile; ++s) rows[s] = w_.S + std::min(call.a + s, w_.l - 1) * w_.row_step;
    const index_t step = w_.terms * call.length;
    Vec<T> sums[tile][Mixed];
#pragma GCC unroll 4
    for (int s = 0; s < tile; ++s) {
#pragma GCC unroll 6
      for (int m = 0; m < Mixed; ++m) sums[s][m] = call.begin > 0 ? call.kept[s * Mixed + m] : Vec<T>{};
    }
    detail::dot_rows<Mixed>(rows, w_, call.mixed + call.first * step, step, call.length, call.begin, call.end,
                            call.first == 0 ? tile * w_.row_step : 0, sums);
    if (call.end < w_.terms) {
#pragma GCC unroll 4
      for (int s = 0; s < tile; ++s) {
#pragma GCC unroll 6
        for (int m = 0; m < Mixed; ++m) call.kept[s * Mixed + m] = sums[s][m];
      }
      return;
    }
    T totals[tile * detail::kDirectMixed + kLanes<T>];
    detail::sum_lanes_of<tile * Mixed>(&sums[0][0], totals);
    for (int s = 0; s < std::min<index_t>(tile, w_.l - call.a); ++s) {
      for (int m = 0; m < Mixed; ++m) {
        const index_t row = (call.first + m) / w_.p, output = (call.first + m) % w_.p * w_.l + call.a + s;
        call.y[row * w_.rows() + output] = totals[s * Mixed + m] + (call.bias ? call.bias[output] : T(0));
      }
    }
  }

  const Factors<T>& w_;
  index_t rows_;
};

}  // namespace subspan
