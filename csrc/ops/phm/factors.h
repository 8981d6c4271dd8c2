// The factors of W = sum_i A_i (x) S_i, and the two passes that take the place of W: mixtures of rows of the S_i, which
// are rows of W, and contractions of a gradient of W, which are gradients of S and A.
//   A (terms, p, q), S (terms, l, k): W (p l, q k), with W[(p, a), (q, b)] = sum_i A[i, p, q] S[i, a, b].
#pragma once
#include <algorithm>

#include "core/batch.h"
#include "core/gemm.h"
#include "core/parallel.h"
#include "core/workspace.h"

namespace subspan {

// The first `count` lanes, 1 ... kLanes; the others are zero, and their memory is not touched.
template <class T>
inline Vec<T> load_first(const T* from, index_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
  }
#else
  return count == kLanes<T> ? load(from) : load_partial(from, count);
#endif
}
template <class T>
inline void store_first(T* to, Vec<T> v, index_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
  } else {
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), (__m512d)v);
  }
#else
  if (count == kLanes<T>) {
    store(to, v);
  } else {
    for (index_t i = 0; i < count; ++i) to[i] = v[i];
  }
#endif
}

// Matrices (terms, l, k) of one batch item, with columns that are neighbours: copied only where they are not.
template <class T>
struct Matrices {
  const T* data;
  index_t term_step, row_step;

  Matrices(const TensorView& view, index_t item, Workspace& workspace)
      : data(static_cast<const T*>(batch_item(view, 3, item))), term_step(view.step(-3)), row_step(view.step(-2)) {
    const index_t terms = view.size(-3), l = view.size(-2), k = view.size(-1);
    if (view.step(-1) == 1 || k == 1) return;
    T* copy = workspace.take<T>(terms * l * k);
    for (index_t i = 0; i < terms; ++i) {
      for (index_t a = 0; a < l; ++a) {
        const T* from = data + i * term_step + a * row_step;
        for (index_t b = 0; b < k; ++b) copy[(i * l + a) * k + b] = from[b * view.step(-1)];
      }
    }
    data = copy, term_step = l * k, row_step = k;
  }
};

template <class T>
struct Factors {
  index_t terms, p, q, l, k;
  const T* S;  // columns are neighbours
  index_t term_step, row_step;
  const T* by_row;     // A as (p, q, terms)
  const T* by_column;  // A as (q, p, terms)
  const T* by_term;    // A as (p, terms, q)

  index_t rows() const { return p * l; }
  index_t columns() const { return q * k; }
  index_t coefficients() const { return terms * p * q; }

  // Of one batch item. A is small and copied in the orders in which it is read.
  Factors(const TensorView& A_view, const TensorView& S_view, index_t item, Workspace& workspace)
      : terms(A_view.size(-3)), p(A_view.size(-2)), q(A_view.size(-1)), l(S_view.size(-2)), k(S_view.size(-1)) {
    T* orders[3];
    for (T*& order : orders) order = workspace.take<T>(coefficients());
    const T* A = static_cast<const T*>(batch_item(A_view, 3, item));
    for (index_t i = 0; i < terms; ++i) {
      for (index_t r = 0; r < p; ++r) {
        for (index_t c = 0; c < q; ++c) {
          const T value = A[i * A_view.step(-3) + r * A_view.step(-2) + c * A_view.step(-1)];
          orders[0][(r * q + c) * terms + i] = value;
          orders[1][(c * p + r) * terms + i] = value;
          orders[2][(r * terms + i) * q + c] = value;
        }
      }
    }
    by_row = orders[0], by_column = orders[1], by_term = orders[2];
    const Matrices<T> matrices(S_view, item, workspace);
    S = matrices.data, term_step = matrices.term_step, row_step = matrices.row_step;
  }
};

// Terms of a sum that are held in registers; longer sums are taken in parts.
constexpr index_t kTermsAtOnce = 8;

// Calls body(first, integral_constant<int, count>) for parts of the terms.
template <class Body>
[[gnu::always_inline]] inline void for_terms(index_t terms, Body&& body) {
  for (index_t first = 0; first < terms; first += kTermsAtOnce) {
    switch (std::min(terms - first, kTermsAtOnce)) {
      case 1: body(first, std::integral_constant<int, 1>{}); break;
      case 2: body(first, std::integral_constant<int, 2>{}); break;
      case 3: body(first, std::integral_constant<int, 3>{}); break;
      case 4: body(first, std::integral_constant<int, 4>{}); break;
      case 5: body(first, std::integral_constant<int, 5>{}); break;
      case 6: body(first, std::integral_constant<int, 6>{}); break;
      case 7: body(first, std::integral_constant<int, 7>{}); break;
      default: body(first, std::integral_constant<int, 8>{}); break;
    }
  }
}

namespace detail {
template <int Terms, class T>
inline void mix_part(const T* rows, index_t row_step, const T* coefficients, index_t coefficient_step, index_t count,
                     index_t columns, bool add, T* to, index_t to_step) {
  for (index_t b = 0; b < columns; b += kLanes<T>) {
    const index_t lanes = std::min<index_t>(columns - b, kLanes<T>);
    const bool whole = lanes == kLanes<T>;
    Vec<T> in[Terms];
#pragma GCC unroll 8
    for (int i = 0; i < Terms; ++i) {
      in[i] = whole ? load(rows + i * row_step + b) : load_first(rows + i * row_step + b, lanes);
    }
    for (index_t j = 0; j < count; ++j) {
      const T* weights = coefficients + j * coefficient_step;
      T* target = to + j * to_step + b;
      Vec<T> sum = add ? load_first(target, lanes) + in[0] * weights[0] : in[0] * weights[0];
#pragma GCC unroll 8
      for (int i = 1; i < Terms; ++i) sum += in[i] * weights[i];
      if (whole) {
        store(target, sum);
      } else {
        store_first(target, sum, lanes);
      }
    }
  }
}
}  // namespace detail

// Mixture j = 0 ... count - 1 of the same rows: to[j][b] = sum_i coefficients[j][i] rows[i][b].
template <class T>
void mix_rows(const T* rows, index_t row_step, index_t terms, const T* coefficients, index_t count, index_t columns,
              T* to, index_t to_step) {
  for_terms(terms, [&](index_t first, auto part) {
    detail::mix_part<part.value>(rows + first * row_step, row_step, coefficients + first, terms, count, columns,
                                 first > 0, to, to_step);
  });
}

// Part of a gradient of W: rows a0 ... a1 and columns b0 ... b1 of all its p x q sub-matrices, entry (a0, b0) of the
// first one at `data`.
template <class T>
struct SubMatrices {
  const T* data;
  index_t p_step, q_step, row_step;
  index_t a0, a1, b0, b1;
};

namespace detail {
// The sums over the lanes of `Count` vectors; totals has room for whole vectors.
template <int Count, class T>
inline void sum_lanes_of(const Vec<T>* sums, T* totals) {
  constexpr int lanes = kLanes<T>;
  for (int first = 0; first < Count; first += lanes) {
    Vec<T> whole[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) whole[i] = first + i < Count ? sums[first + i] : Vec<T>{};
    store(totals + first, lane_sums<T>(whole));
  }
}

template <int Terms, class T>
inline void contract_part_to_S(const SubMatrices<T>& dW, const Factors<T>& factors, index_t first, T* dS) {
  for (index_t a = dW.a0; a < dW.a1; ++a) {
    for (index_t b = dW.b0; b < dW.b1; b += kLanes<T>) {
      const index_t lanes = std::min<index_t>(dW.b1 - b, kLanes<T>);
      const T* in = dW.data + (a - dW.a0) * dW.row_step + b - dW.b0;
      const T* weights = factors.by_row + first;
      Vec<T> sums[Terms] = {};
      for (index_t r = 0; r < factors.p; ++r) {
        for (index_t c = 0; c < factors.q; ++c, weights += factors.terms) {
          const Vec<T> entry = load_first(in + r * dW.p_step + c * dW.q_step, lanes);
#pragma GCC unroll 8
          for (int i = 0; i < Terms; ++i) sums[i] += entry * weights[i];
        }
      }
      T* to = dS + (first * factors.l + a) * factors.k + b;
#pragma GCC unroll 8
      for (int i = 0; i < Terms; ++i) store_first(to + i * factors.l * factors.k, sums[i], lanes);
    }
  }
}

template <int Terms, class T>
inline void contract_part_to_A(const SubMatrices<T>& dW, const Factors<T>& factors, const T* S, index_t term_step,
                               index_t row_step, index_t first, T* dA) {
  for (index_t r = 0; r < factors.p; ++r) {
    for (index_t c = 0; c < factors.q; ++c) {
      Vec<T> sums[Terms] = {};
      for (index_t a = dW.a0; a < dW.a1; ++a) {
        const T* in = dW.data + r * dW.p_step + c * dW.q_step + (a - dW.a0) * dW.row_step - dW.b0;
        const T* rows = S + first * term_step + (a - dW.a0) * row_step - dW.b0;
        index_t b = dW.b0;
        for (; b + kLanes<T> <= dW.b1; b += kLanes<T>) {
          const Vec<T> entry = load(in + b);
#pragma GCC unroll 8
          for (int i = 0; i < Terms; ++i) sums[i] += entry * load(rows + i * term_step + b);
        }
        if (b == dW.b1) continue;
        const Vec<T> entry = load_first(in + b, dW.b1 - b);
#pragma GCC unroll 8
        for (int i = 0; i < Terms; ++i) sums[i] += entry * load_first(rows + i * term_step + b, dW.b1 - b);
      }
      T totals[kTermsAtOnce + kLanes<T>];
      sum_lanes_of<Terms>(sums, totals);
      std::copy_n(totals, Terms, dA + (r * factors.q + c) * factors.terms + first);
    }
  }
}
}  // namespace detail

// The entries of dS (terms, l, k) that the sub-matrices determine.
template <class T>
void contract_to_S(const SubMatrices<T>& dW, const Factors<T>& factors, T* dS) {
  for_terms(factors.terms,
            [&](index_t first, auto part) { detail::contract_part_to_S<part.value>(dW, factors, first, dS); });
}

// Their share of dA, as (p, q, terms). The entries of S that belong to them start at `S`; they are read p q times.
template <class T>
void contract_to_A(const SubMatrices<T>& dW, const Factors<T>& factors, const T* S, index_t term_step, index_t row_step,
                   T* dA) {
  for_terms(factors.terms, [&](index_t first, auto part) {
    detail::contract_part_to_A<part.value>(dW, factors, S, term_step, row_step, first, dA);
  });
}

// dA (terms, p, q) of its shares, which are added up in their order.
template <class T>
void add_shares(const T* shares, index_t count, const Factors<T>& factors, T* dA) {
  const index_t pairs = factors.p * factors.q;
  for (index_t i = 0; i < factors.terms; ++i) {
    for (index_t pair = 0; pair < pairs; ++pair) {
      double total = 0;
      for (index_t s = 0; s < count; ++s) total += shares[(s * pairs + pair) * factors.terms + i];
      dA[i * pairs + pair] = static_cast<T>(total);
    }
  }
}

// Items of a batch side by side where there are enough of them, else one after the other, each on all threads.
template <class Body>
void for_each_of(index_t items, double flops, int threads, Body&& body) {
  if (items >= threads) {
    parallel_for(items, useful_threads(static_cast<double>(items) * flops, threads),
                 [&](index_t item) { body(item, 1); });
  } else {
    for (index_t item = 0; item < items; ++item) body(item, useful_threads(flops, threads));
  }
}

}  // namespace subspan
