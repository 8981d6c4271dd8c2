// Householder's reduction of small matrices to bidiagonal form for singular values alone, one matrix per SIMD lane.
//
// A step reflects a column from the left and then a row from the right. The reflection of the row is held back until
// the next step's pass over the trailing matrix, which also gathers the product that the following reflection of a row
// needs: a pass reads each entry twice and writes it once for all four multiplications of the step (the operators of
// Howell, Demmel, Fulton, Hammarling, Marmol 2008).
#pragma once
#include "core/workspace.h"

namespace subspan {

namespace bidiagonal {

// Columns taken together in a pass: the vectors u, z and w are then read once for all of them.
constexpr int kTogether = 4;

// A reflection whose vector is shorter than the root of this, beside a largest entry of the matrix of at least 1, is
// left out: its square could underflow, and what it would clear away is far below rounding errors.
template <class T>
constexpr T kNegligible = sizeof(T) == 4 ? T(1e-30) : T(1e-200);

// I - factor u u^T maps a vector with first entry `first` and squared length `square` to a multiple of the first unit
// vector, if u is the vector with `offset` added to its first entry.
template <class T>
struct Reflection {
  Vec<T> offset, factor;

  Reflection(Vec<T> first, Vec<T> rest, Vec<T> square) {
    const Mask<T> wanted = rest > kNegligible<T>;
    const Vec<T> length = square_root(square), positive = first < 0 ? -first : first;
    const Vec<T> denominator = wanted ? length * (length + positive) : broadcast(T(1));
    factor = wanted ? 1 / denominator : Vec<T>{};
    offset = first < 0 ? -length : length;
  }
};

// What a step hands to its pass: all vectors indexed by row.
template <class T>
struct Step {
  const Vec<T>* u;  // of the reflection from the left, from row `first` on
  Vec<T> factor;    // its factor
  const Vec<T>* z;  // the reflection held back is A - z v^T
  Vec<T> product;   // u . z
  Vec<T>* w;        // becomes A x, where x is row `first`; rows below `first`
  index_t first, rows;
};

// u . columns for `Columns` columns, `stride` apart.
template <int Columns, class T>
[[gnu::always_inline]] inline void dots(const Vec<T>* u, const Vec<T>* columns, index_t stride, index_t first,
                                        index_t rows, Vec<T> (&sums)[Columns]) {
  Vec<T> odd[Columns];
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) sums[c] = odd[c] = Vec<T>{};
  index_t i = first;
  for (; i + 2 <= rows; i += 2) {
    const Vec<T> u0 = u[i], u1 = u[i + 1];
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) {
      sums[c] += u0 * columns[c * stride + i];
      odd[c] += u1 * columns[c * stride + i + 1];
    }
  }
  if (i < rows) {
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) sums[c] += u[i] * columns[c * stride + i];
  }
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) sums[c] += odd[c];
}

// The pass over `Columns` columns; v and x hold their entries of the rows.
template <int Columns, class T>
[[gnu::always_inline]] inline void pass_columns(const Step<T>& step, Vec<T>* columns, const Vec<T>* v, Vec<T>* x) {
  const index_t rows = step.rows, first = step.first;
  Vec<T> sums[Columns], along[Columns], row[Columns];
  dots<Columns, T>(step.u, columns, rows, first, rows, sums);
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) {
    along[c] = v[c];
    sums[c] = (sums[c] - step.product * along[c]) * step.factor;
    x[c] = row[c] = columns[c * rows + first] - step.z[first] * along[c] - step.u[first] * sums[c];
  }
  for (index_t i = first + 1; i < rows; ++i) {
    const Vec<T> u = step.u[i], z = step.z[i];
    Vec<T> w = step.w[i];
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) {
      const Vec<T> entry = columns[c * rows + i] - z * along[c] - u * sums[c];
      columns[c * rows + i] = entry;
      w += entry * row[c];
    }
    step.w[i] = w;
  }
}

template <int Columns, class T>
[[gnu::always_inline]] inline void reflect_columns(const Vec<T>* u, Vec<T> factor, Vec<T>* columns, index_t first,
                                                   index_t rows) {
  Vec<T> sums[Columns];
  dots<Columns, T>(u, columns, rows, first, rows, sums);
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) sums[c] *= factor;
  for (index_t i = first; i < rows; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) columns[c * rows + i] -= u[i] * sums[c];
  }
}

// body(constant, column) over columns from ... to - 1, `constant` of them at a time.
template <class Body>
[[gnu::always_inline]] inline void by_columns(index_t from, index_t to, Body&& body) {
  for (; from + kTogether <= to; from += kTogether) body(std::integral_constant<int, kTogether>{}, from);
  static_assert(kTogether == 4);
  if (to - from == 3) body(std::integral_constant<int, 3>{}, from);
  if (to - from == 2) body(std::integral_constant<int, 2>{}, from);
  if (to - from == 1) body(std::integral_constant<int, 1>{}, from);
}

// x becomes the triangular factor R of its QR factorisation, count x count and packed, zeros below.
template <class T>
void reduce_to_triangle(Vec<T>* x, index_t rows, index_t count) {
  for (index_t k = 0; k < count; ++k) {
    Vec<T>* u = x + k * rows;
    const Vec<T> first = u[k];
    Vec<T> rest{};
    for (index_t i = k + 1; i < rows; ++i) rest += u[i] * u[i];
    const Reflection<T> reflection(first, rest, first * first + rest);
    u[k] = first + reflection.offset;
    by_columns(k + 1, count, [&](auto columns, index_t c) {
      reflect_columns<columns.value, T>(u, reflection.factor, x + c * rows, k, rows);
    });
    const Mask<T> reflected = reflection.factor != 0;
    u[k] = reflected ? -reflection.offset : first;
  }
  for (index_t c = 0; c < count; ++c) {
    for (index_t i = 0; i < count; ++i) x[c * count + i] = i <= c ? x[c * rows + i] : Vec<T>{};
  }
}

}  // namespace bidiagonal

// Matrices of kLanes lanes, `count` columns and `rows` >= count rows, entry (r, c) at x[c * rows + r], the largest
// between 1 and 2 in absolute value or all zero, have the singular values of an upper bidiagonal matrix: the squares of
// its diagonal become q[i * step], those beside it e[i * step], i < count; the last of e is zero. x is destroyed.
template <class T>
void bidiagonalize_interleaved(Vec<T>* x, index_t rows, index_t count, Vec<T>* q, Vec<T>* e, index_t step) {
  using namespace bidiagonal;
  if (3 * rows >= 5 * count && count > 1) {  // then R costs less than it saves
    reduce_to_triangle<T>(x, rows, count);
    rows = count;
  }
  Workspace workspace;
  Vec<T>* z = workspace.take<Vec<T>>(rows);
  Vec<T>* w = workspace.take<Vec<T>>(rows);
  Vec<T>* v = workspace.take<Vec<T>>(count);
  for (index_t i = 0; i < rows; ++i) z[i] = w[i] = Vec<T>{};
  for (index_t c = 0; c < count; ++c) v[c] = Vec<T>{};
  Vec<T> factor{}, offset{};  // of the reflection held back, whose v is the row with `offset` added in front
  for (index_t k = 0; k < count; ++k) {
    Vec<T>* u = x + k * rows;
    v[k] += offset;
    // z = factor A v, of which w has the part without the offset; then column k is brought up to date.
    Vec<T> rest{}, product{};
    const auto update = [&, along = v[k]](index_t i) {
      const Vec<T> entry = u[i];
      z[i] = factor * (w[i] + offset * entry);
      w[i] = Vec<T>{};
      return u[i] = entry - z[i] * along;
    };
    const Vec<T> first = update(k);
    for (index_t i = k + 1; i < rows; ++i) {
      const Vec<T> entry = update(i);
      rest += entry * entry;
      product += entry * z[i];
    }
    const Vec<T> square = first * first + rest;
    q[k * step] = square;
    const Reflection<T> left(first, rest, square);
    u[k] = first + left.offset;
    const Step<T> next{u, left.factor, z, product + u[k] * z[k], w, k, rows};
    by_columns(k + 1, count,
               [&](auto columns, index_t c) { pass_columns<columns.value, T>(next, x + c * rows, v + c, v + c); });
    Vec<T> across{};
    for (index_t c = k + 2; c < count; ++c) across += v[c] * v[c];
    const Vec<T> front = k + 1 < count ? v[k + 1] : Vec<T>{};
    e[k * step] = front * front + across;
    const Reflection<T> right(front, across, e[k * step]);
    factor = right.factor;
    offset = right.offset;
  }
}

}  // namespace subspan
