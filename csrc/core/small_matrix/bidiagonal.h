// Householder's reduction of small matrices to bidiagonal form for singular values alone, one matrix per SIMD lane.
//
// A step reflects a column from the left and then a row from the right. The reflection of the row is held back until
// the next step's pass over the trailing matrix, which also gathers the product that the following reflection of a row
// needs: a pass reads each entry twice and writes it once for all four multiplications of the step (the operators of
// Howell, Demmel, Fulton, Hammarling, Marmol 2008).
#pragma once
#include <type_traits>

#include "core/workspace.h"

namespace subspan {

namespace bidiagonal {

// Columns taken together in a pass, 1 ... 4: the vectors u, z and w are then read once for all of them.
constexpr int kTogether = 4;

constexpr index_t kFirstCache = 40000;  // bytes that stay near the core between passes

// How many lane groups of matrices of `size` entries a reduction should be given, of at most `most`, a power of two.
template <class T>
index_t groups_together(index_t size, index_t most) {
  while (most > 1 && size * most * kVectorBytes > kFirstCache) most /= 2;
  return most;
}

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

// What a step hands to its pass: vectors indexed by row.
template <class T>
struct Step {
  const Vec<T>* u;  // of the reflection from the left, from row `first` on
  Vec<T> factor;    // its factor
  const Vec<T>* z;  // the reflection held back takes z v^T off the matrix
  Vec<T> product;   // u . z
  Vec<T>* w;        // becomes A x of the rows below `first`, where x is row `first` of the result A
  index_t first, rows;
};

// The reflection of a row that is held back: v is that row with `offset` added to its first entry.
template <class T>
struct Held {
  Vec<T> factor, offset;
  Vec<T>*z, *w, *v;
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

// The pass over `Columns` columns; v and x hold their entries of the rows. kAhead brings the next columns nearer.
template <int Columns, bool kAhead, class T>
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
      if (kAhead) __builtin_prefetch(columns + (c + Columns) * rows + i, 1);
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

// Brings column k up to date and reflects it.
template <class T>
[[gnu::always_inline]] inline Step<T> reflect_column(Vec<T>* x, index_t rows, index_t k, Held<T>& held,
                                                     Vec<T>& square) {
  Vec<T>*u = x + k * rows, *z = held.z, *w = held.w;
  const Vec<T> along = held.v[k] + held.offset, factor = held.factor, offset = held.offset;
  Vec<T> rest[2] = {}, product[2] = {};
  const auto update = [&](index_t i) {  // z = factor A v, of which w has what the row itself contributes
    z[i] = factor * (w[i] + offset * u[i]);
    w[i] = Vec<T>{};
    return u[i] -= z[i] * along;
  };
  const auto add = [&](index_t i, int part) {
    const Vec<T> entry = update(i);
    rest[part] += entry * entry;
    product[part] += entry * z[i];
  };
  const Vec<T> first = update(k);
  held.v[k] = along;
  index_t i = k + 1;
  for (; i + 2 <= rows; i += 2) add(i, 0), add(i + 1, 1);
  if (i < rows) add(i, 0);
  rest[0] += rest[1];
  square = first * first + rest[0];
  const Reflection<T> reflection(first, rest[0], square);
  u[k] = first + reflection.offset;
  return {u, reflection.factor, z, product[0] + product[1] + u[k] * z[k], w, k, rows};
}

// Of a row v, entries `first` ... count - 1.
template <class T>
[[gnu::always_inline]] inline void reflect_row(index_t first, index_t count, Held<T>& held, Vec<T>& square) {
  Vec<T> rest[4] = {};
  index_t c = first + 1;
  for (; c + 4 <= count; c += 4) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) rest[j] += held.v[c + j] * held.v[c + j];
  }
  for (; c < count; ++c) rest[0] += held.v[c] * held.v[c];
  const Vec<T> front = first < count ? held.v[first] : Vec<T>{};
  const Vec<T> across = (rest[0] + rest[1]) + (rest[2] + rest[3]);
  square = front * front + across;
  const Reflection<T> reflection(front, across, square);
  held.factor = reflection.factor;
  held.offset = reflection.offset;
}

}  // namespace bidiagonal

// `groups` times kLanes matrices of `count` columns and `rows` >= count rows, one after another, entry (r, c) at
// x[c * rows + r], the largest between 1 and 2 in absolute value or all zero. They have the singular values of upper
// bidiagonal matrices: for group g, the squares of the diagonal become q[i * step + g], those beside it e[i * step +
// g], i < count, the last of which is zero. x is destroyed.
template <class T>
void bidiagonalize_interleaved(Vec<T>* x, index_t rows, index_t count, index_t groups, Vec<T>* q, Vec<T>* e,
                               index_t step) {
  using namespace bidiagonal;
  const index_t apart = rows * count;
  if (3 * rows >= 5 * count && count > 1) {  // then R costs less than it saves
    for (index_t g = 0; g < groups; ++g) reduce_to_triangle<T>(x + g * apart, rows, count);
    rows = count;
  }
  const bool beyond_cache = rows * count * groups * kVectorBytes > kFirstCache;
  Workspace workspace;
  Held<T>* held = workspace.take<Held<T>>(groups);
  Step<T>* steps = workspace.take<Step<T>>(groups);
  for (index_t g = 0; g < groups; ++g) {
    Vec<T>* zeros = workspace.take<Vec<T>>(2 * rows + count);
    for (index_t i = 0; i < 2 * rows + count; ++i) zeros[i] = Vec<T>{};
    held[g] = {Vec<T>{}, Vec<T>{}, zeros, zeros + rows, zeros + 2 * rows};
  }
  for (index_t k = 0; k < count; ++k) {  // groups wait for their quotients and roots together
    for (index_t g = 0; g < groups; ++g) steps[g] = reflect_column<T>(x + g * apart, rows, k, held[g], q[k * step + g]);
    for (index_t g = 0; g < groups; ++g) {
      Vec<T>*v = held[g].v, *matrix = x + g * apart;
      const Step<T> now = steps[g];
      if (beyond_cache) {
        by_columns(k + 1, count, [&](auto columns, index_t c) __attribute__((always_inline)) {
          pass_columns<columns.value, true, T>(now, matrix + c * rows, v + c, v + c);
        });
      } else {
        by_columns(k + 1, count, [&](auto columns, index_t c) __attribute__((always_inline)) {
          pass_columns<columns.value, false, T>(now, matrix + c * rows, v + c, v + c);
        });
      }
    }
    for (index_t g = 0; g < groups; ++g) reflect_row<T>(k + 1, count, held[g], e[k * step + g]);
  }
}

}  // namespace subspan
