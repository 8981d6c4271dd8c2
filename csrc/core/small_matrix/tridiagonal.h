// Householder's reduction of small symmetric matrices to tridiagonal form for eigenvalues alone, one matrix per SIMD
// lane. The update that a reflection asks for is held back until the pass over the trailing triangle in which the next
// reflection gathers its product: each entry is read and written once a step.
#pragma once
#include "core/small_matrix/bidiagonal.h"
#include "core/small_matrix/quotient_difference.h"

namespace subspan {

namespace tridiagonal {

// A - u w^T - w u^T is due; product = A next, of the entries seen so far. All indexed by row.
template <class T>
struct Step {
  const Vec<T>*u, *w, *next;
  Vec<T>* product;
  index_t size;
};

// The pass over `Columns` columns of the lower triangle from column `first` on.
template <int Columns, bool kAhead, class T>
[[gnu::always_inline]] inline void pass_columns(const Step<T>& step, Vec<T>* columns, index_t first) {
  const index_t size = step.size;
  Vec<T> u[Columns], w[Columns], next[Columns], sums[Columns];
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) {
    u[c] = step.u[first + c];
    w[c] = step.w[first + c];
    next[c] = step.next[first + c];
    sums[c] = Vec<T>{};
  }
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) {
#pragma GCC unroll 4
    for (int r = c; r < Columns; ++r) {
      Vec<T>& entry = columns[c * size + first + r];
      entry -= u[r] * w[c] + w[r] * u[c];
      sums[r] += entry * next[c];
      if (r > c) sums[c] += entry * next[r];
    }
  }
  for (index_t i = first + Columns; i < size; ++i) {
    const Vec<T> u_here = step.u[i], w_here = step.w[i], next_here = step.next[i];
    Vec<T> sum = step.product[i];
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) {
      if (kAhead) __builtin_prefetch(columns + (c + Columns) * size + i, 1);
      const Vec<T> entry = columns[c * size + i] - u_here * w[c] - w_here * u[c];
      columns[c * size + i] = entry;
      sum += entry * next[c];
      sums[c] += entry * next_here;
    }
    step.product[i] = sum;
  }
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) step.product[first + c] += sums[c];
}

// The reflection of a step and its vectors.
template <class T>
struct Held {
  Vec<T> factor;
  Vec<T>*u, *w, *next, *product;
};

// Brings column k up to date, keeps its diagonal entry and reflects the others.
template <class T>
[[gnu::always_inline]] inline void reflect_column(const Vec<T>* column, index_t size, index_t k, Held<T>& held,
                                                  Vec<T>& diagonal, Vec<T>& square) {
  const Vec<T> u = held.u[k], w = held.w[k];
  diagonal = column[k] - 2 * u * w;
  Vec<T> rest[2] = {};
  const auto update = [&](index_t i) { return held.next[i] = column[i] - held.u[i] * w - held.w[i] * u; };
  const Vec<T> first = k + 1 < size ? update(k + 1) : Vec<T>{};
  for (index_t i = k + 2; i < size; ++i) {
    const Vec<T> entry = update(i);
    rest[i % 2] += entry * entry;
  }
  rest[0] += rest[1];
  square = first * first + rest[0];
  const bidiagonal::Reflection<T> reflection(first, rest[0], square);
  if (k + 1 < size) held.next[k + 1] = first + reflection.offset;
  held.factor = reflection.factor;
  for (index_t i = k + 1; i < size; ++i) held.product[i] = Vec<T>{};
}

// From the product p = A u to the update: with f = factor, H A H = A - u w^T - w u^T for w = f p - f^2 (p.u) / 2 u.
template <class T>
[[gnu::always_inline]] inline void hold_back(index_t from, index_t size, Held<T>& held) {
  std::swap(held.u, held.next);
  std::swap(held.w, held.product);
  Vec<T> dot[2] = {};
  for (index_t i = from; i < size; ++i) dot[i % 2] += held.w[i] * held.u[i];
  const Vec<T> share = held.factor * (held.factor * (dot[0] + dot[1]) / 2);  // f^2 may overflow
  for (index_t i = from; i < size; ++i) held.w[i] = held.factor * held.w[i] - share * held.u[i];
}

}  // namespace tridiagonal

// `groups` times kLanes symmetric matrices, one after another, entry (r, c), r >= c, at a[c * size + r], the largest
// between 1 and 2 in absolute value or all zero. They have the eigenvalues of tridiagonal matrices: for group g, the
// diagonal becomes diagonal[i * step + g], the squares of what is beside it squares[i * step + g], i < size, the last
// of which is zero. a is destroyed.
template <class T>
void tridiagonalize_interleaved(Vec<T>* a, index_t size, index_t groups, Vec<T>* diagonal, Vec<T>* squares,
                                index_t step) {
  using namespace tridiagonal;
  const index_t apart = size * size;
  const bool beyond_cache = apart * groups * kVectorBytes > 2 * bidiagonal::kFirstCache;
  Workspace workspace;
  Held<T>* held = workspace.take<Held<T>>(groups);
  for (index_t g = 0; g < groups; ++g) {
    Vec<T>* zeros = workspace.take<Vec<T>>(4 * size);
    for (index_t i = 0; i < 4 * size; ++i) zeros[i] = Vec<T>{};
    held[g] = {Vec<T>{}, zeros, zeros + size, zeros + 2 * size, zeros + 3 * size};
  }
  for (index_t k = 0; k < size; ++k) {  // groups wait for their quotients and roots together
    for (index_t g = 0; g < groups; ++g) {
      reflect_column<T>(a + g * apart + k * size, size, k, held[g], diagonal[k * step + g], squares[k * step + g]);
    }
    for (index_t g = 0; g < groups; ++g) {
      const Step<T> now{held[g].u, held[g].w, held[g].next, held[g].product, size};
      Vec<T>* matrix = a + g * apart;
      if (beyond_cache) {
        bidiagonal::by_columns(k + 1, size, [&](auto columns, index_t c) __attribute__((always_inline)) {
          pass_columns<columns.value, true, T>(now, matrix + c * size, c);
        });
      } else {
        bidiagonal::by_columns(k + 1, size, [&](auto columns, index_t c) __attribute__((always_inline)) {
          pass_columns<columns.value, false, T>(now, matrix + c * size, c);
        });
      }
    }
    for (index_t g = 0; g < groups; ++g) hold_back<T>(k + 1, size, held[g]);
  }
}

// Of a tridiagonal matrix given like this, subtracts a lower bound of its eigenvalues and factors it for
// qd_interleaved: the diagonal becomes q, the squares e, at most 1e8. Gives the bound.
template <class T>
Vec<T> factor_tridiagonal(Vec<T>* diagonal, Vec<T>* squares, index_t size, index_t step) {
  Vec<T> lowest = broadcast(std::numeric_limits<T>::infinity()), highest = -lowest, before{};
  for (index_t i = 0; i < size; ++i) {  // Gershgorin's circles
    const Vec<T> after = square_root(squares[i * step]), radius = before + after;
    const Vec<T> low = diagonal[i * step] - radius, high = diagonal[i * step] + radius;
    lowest = low < lowest ? low : lowest;
    highest = high > highest ? high : highest;
    before = after;
  }
  lowest -= 4 * std::numeric_limits<T>::epsilon() * (highest - lowest);
  Vec<T> coupling{};
  for (index_t i = 0; i < size; ++i) {  // as the rows are dominated by their diagonal, so are those of the factors
    const Vec<T> pivot = diagonal[i * step] - lowest - coupling;
    const Vec<T> least = square_root(squares[i * step]) + std::numeric_limits<T>::min();
    diagonal[i * step] = pivot < least ? least : pivot;
    coupling = squares[i * step] / diagonal[i * step];
    squares[i * step] = coupling;
  }
  return lowest;
}

}  // namespace subspan
