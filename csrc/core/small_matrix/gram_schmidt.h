// Tall matrices held by columns in float64: orthonormal bases by Gram and Schmidt's process, and the products between
// two such matrices.
#pragma once
#include "core/batch.h"
#include "core/lookahead.h"
#include "core/pack.h"

namespace subspan {

// `count` columns of `rows` entries, each starting at a multiple of `step`, followed by zeros up to whole vectors. The
// step is an odd number of vectors: neighbouring columns do not compete for the same lines of the first cache.
struct Columns {
  double* data;
  index_t rows, count, step;

  double* column(index_t c) const { return data + c * step; }
  index_t length() const { return round_up(rows, kLanes<double>); }
  static index_t step_of(index_t rows) {
    return (round_up(rows, kLanes<double>) / kLanes<double> / 2 * 2 + 1) * kLanes<double>;
  }
  static Columns take(index_t rows, index_t count, Workspace& workspace) {
    const index_t step = step_of(rows);
    return {workspace.take<double>(step * count), rows, count, step};
  }
};

namespace detail {

// kLanes neighbouring entries in float64.
template <class Stored>
inline Vec<double> load_double(const Stored* from) {
#if defined(__AVX512F__)
  // GCC converts halves and joins them.
  if constexpr (std::is_same_v<Stored, float>) return (Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(from));
#endif
  typedef Stored Narrow __attribute__((vector_size(kLanes<double> * sizeof(Stored))));
  Narrow entries;
  std::memcpy(&entries, from, sizeof entries);
  return __builtin_convertvector(entries, Vec<double>);
}

template <class Stored>
void read_columns(const Stored* from, index_t row_step, index_t column_step, const Lookahead& ask, const Columns& to) {
  constexpr index_t lanes = kLanes<double>, bytes = lanes * sizeof(Stored);
  const index_t whole = to.rows / lanes * lanes;
  if (row_step == 1) {
    for (index_t c = 0; c < to.count; ++c) {
      const Stored* in = from + c * column_step;
      double* out = to.column(c);
      for (index_t r = 0; r < whole; r += lanes) {
        ask(in + r, bytes);
        store(out + r, load_double(in + r));
      }
      for (index_t r = whole; r < to.length(); ++r) out[r] = r < to.rows ? static_cast<double>(in[r]) : 0;
    }
    return;
  }
  const index_t squares = column_step == 1 ? to.count / lanes * lanes : 0;
  for (index_t r = 0; r < whole; r += lanes) {
    if (row_step == to.count) {
      ask(from + r * row_step, bytes * row_step);
    } else {
      for (index_t i = 0; i < lanes; ++i) ask(from + (r + i) * row_step, to.count * index_t{sizeof(Stored)});
    }
    for (index_t c = 0; c < squares; c += lanes) {
      Vec<double> square[lanes];
#pragma GCC unroll 8
      for (index_t i = 0; i < lanes; ++i) square[i] = load_double(from + (r + i) * row_step + c);
      transpose_square<double>(square);
#pragma GCC unroll 8
      for (index_t i = 0; i < lanes; ++i) store(to.column(c + i) + r, square[i]);
    }
  }
  for (index_t c = 0; c < to.count; ++c) {
    double* out = to.column(c);
    for (index_t r = c < squares ? whole : 0; r < to.rows; ++r)
      out[r] = static_cast<double>(from[r * row_step + c * column_step]);
    std::fill(out + to.rows, out + to.length(), 0.0);
  }
}

}  // namespace detail

// Copies item `item` of an array (*batch, rows, count), converting and transposing on the way; item `next` is to
// follow.
inline void read_columns(const TensorView& array, index_t item, index_t next, const Columns& to) {
  const void* data = batch_item(array, 2, item);
  const auto read = [&](auto* from) {
    detail::read_columns(from, array.step(-2), array.step(-1), Lookahead(array, item, next), to);
  };
  if (array.dtype == DType::f32) return read(static_cast<const float*>(data));
  if (array.dtype == DType::f64) return read(static_cast<const double*>(data));
  const Rows<double> rows(data, array.dtype, array.step(-2), array.step(-1));
  Workspace workspace;
  double* scratch = workspace.take<double>(to.count);
  for (index_t r = 0; r < to.rows; ++r) {
    const double* in = rows.read(r, 0, to.count, scratch);
    for (index_t c = 0; c < to.count; ++c) to.column(c)[r] = in[c];
  }
  for (index_t c = 0; c < to.count; ++c) std::fill(to.column(c) + to.rows, to.column(c) + to.length(), 0.0);
}

// Every entry, with `added` to it, into a packed row-major array.
template <class T>
void write_rows(const Columns& from, double added, T* to) {
  constexpr index_t lanes = kLanes<double>;
  typedef T Narrow __attribute__((vector_size(lanes * sizeof(T))));
  for (index_t r = 0; r < from.rows; r += lanes) {
    const index_t present = std::min(lanes, from.rows - r);
    for (index_t c = 0; c < from.count; c += lanes) {
      const index_t width = std::min(lanes, from.count - c);
      Vec<double> square[lanes];
      for (index_t i = 0; i < lanes; ++i) square[i] = i < width ? load(from.column(c + i) + r) + added : Vec<double>{};
      transpose_square<double>(square);
      for (index_t i = 0; i < present; ++i) {
        const Narrow row = __builtin_convertvector(square[i], Narrow);
        std::memcpy(to + (r + i) * from.count + c, &row, static_cast<std::size_t>(width) * sizeof(T));
      }
    }
  }
}

// How many columns of an orthonormal basis are not zero: those that are stand for directions that depend on others.
inline index_t independent_columns(const Columns& basis) {
  index_t count = 0;
  for (index_t c = 0; c < basis.count; ++c) {
    const double* column = basis.column(c);
    count += std::any_of(column, column + basis.rows, [](double entry) { return entry != 0; });
  }
  return count;
}

// In halves, which is shorter than one after the other.
inline double sum_lanes(Vec<double> v) {
  double lanes[kLanes<double>];
  store(lanes, v);
#pragma GCC unroll 4
  for (int half = kLanes<double> / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// totals[i] = the sum of the lanes of vectors[i]: transposed, as many at a time as there are lanes, the sums are sums
// of vectors.
template <int count>
inline void sum_each(const Vec<double>* vectors, double* totals) {
  constexpr int lanes = kLanes<double>, few = 2;  // measured: up to so many are summed one by one
#pragma GCC unroll 8
  for (int first = 0; first < count; first += lanes) {
    const int present = std::min(lanes, count - first);
    if (present <= few && present < lanes) {
      for (int i = 0; i < present; ++i) totals[first + i] = sum_lanes(vectors[first + i]);
      continue;
    }
    Vec<double> square[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes; ++i) square[i] = i < present ? vectors[first + i] : Vec<double>{};
    transpose_square<double>(square);
#pragma GCC unroll 4
    for (int half = lanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) square[i] += square[i + half];
    }
    std::memcpy(totals + first, &square[0], static_cast<std::size_t>(present) * sizeof(double));
  }
}

namespace detail {

// products[i * step + j] = left[i]^T right[j] for a block of Left x Right columns.
template <int Left, int Right>
inline void block_products(const Columns& left, index_t i0, const Columns& right, index_t j0, double* products,
                           index_t step) {
  Vec<double> sums[Left][Right] = {};
  for (index_t r = 0; r < left.length(); r += kLanes<double>) {
    Vec<double> b[Right];
    for (int j = 0; j < Right; ++j) b[j] = load(right.column(j0 + j) + r);
    for (int i = 0; i < Left; ++i) {
      const Vec<double> a = load(left.column(i0 + i) + r);
      for (int j = 0; j < Right; ++j) sums[i][j] += a * b[j];
    }
  }
  double totals[Left * Right];
  sum_each<Left * Right>(&sums[0][0], totals);
  for (int i = 0; i < Left; ++i) {
    for (int j = 0; j < Right; ++j) products[(i0 + i) * step + j0 + j] = totals[i * Right + j];
  }
}

// body(std::integral_constant<int, count>) for count in 1 ... most.
template <int most, class Body>
inline void with_constant(index_t count, Body&& body) {
  if constexpr (most > 0) {
    if (count == most) return body(std::integral_constant<int, most>{});
    with_constant<most - 1>(count, body);
  }
}

// Calls body with the constants that cover `count` in steps of four, and with where each starts.
template <class Body>
inline void in_fours(index_t count, Body&& body) {
  index_t i = 0;
  for (; i + 4 <= count; i += 4) body(std::integral_constant<int, 4>{}, i);
  for (; i < count; ++i) body(std::integral_constant<int, 1>{}, i);
}

}  // namespace detail

// products[i * step + j] = left[i]^T right[j] for all columns of two matrices of equally many rows.
inline void products(const Columns& left, const Columns& right, double* products, index_t step) {
  detail::in_fours(left.count, [&](auto a, index_t i) {
    detail::in_fours(right.count, [&](auto b, index_t j) {
      detail::block_products<a.value, b.value>(left, i, right, j, products, step);
    });
  });
}

// to[j] = sum_i from[i] weights[i * step + j], or that added to to[j].
template <bool add>
inline void combine(const Columns& from, const double* weights, index_t step, const Columns& to) {
  detail::in_fours(to.count, [&](auto width, index_t j0) {
    for (index_t r = 0; r < to.length(); r += kLanes<double>) {
      Vec<double> sums[width.value];
      for (int j = 0; j < width.value; ++j) sums[j] = add ? load(to.column(j0 + j) + r) : Vec<double>{};
      for (index_t i = 0; i < from.count; ++i) {
        const Vec<double> a = load(from.column(i) + r);
        for (int j = 0; j < width.value; ++j) sums[j] += a * weights[i * step + j0 + j];
      }
      for (int j = 0; j < width.value; ++j) store(to.column(j0 + j) + r, sums[j]);
    }
  });
}

namespace detail {

inline double square_norm(const double* column, index_t length) {
  constexpr index_t lanes = kLanes<double>;
  Vec<double> sums[4] = {};
  index_t r = 0;
  for (; r + 4 * lanes <= length; r += 4 * lanes) {
    for (int k = 0; k < 4; ++k) sums[k] += load(column + r + k * lanes) * load(column + r + k * lanes);
  }
  for (; r < length; r += lanes) sums[0] += load(column + r) * load(column + r);
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline void scale(double* column, index_t length, double factor) {
  for (index_t r = 0; r < length; r += kLanes<double>) store(column + r, load(column + r) * factor);
}

// Divides a column whose squares would underflow or overflow by a power of two, which it gives; `square` is its squared
// norm and becomes that of what is left.
inline double unit_of(const Columns& one, double& square) {
  if (square > 1e-280 && square < 1e280) return 1;
  double* column = one.column(0);
  double largest = 0;
  for (index_t r = 0; r < one.rows; ++r) largest = std::max(largest, std::abs(column[r]));
  if (!(largest > 0) || largest > std::numeric_limits<double>::max()) return 1;
  const double unit = std::ldexp(1.0, std::ilogb(largest));
  for (index_t r = 0; r < one.rows; ++r) column[r] /= unit;
  square = square_norm(column, one.length());
  return unit;
}

}  // namespace detail

// A = Q R with Q in place of A: every column is made orthogonal to those before it, and once more where little of it
// was left, which is enough for orthogonality to rounding (Daniel, Gragg, Kaufman, Stewart 1976). triangle (count x
// count, upper, row-major) becomes R. A column that lies in the span of those before it, to `tolerance` times its norm,
// becomes zero and so does its diagonal entry of R. Gives how many do not.
inline index_t orthonormalize(const Columns& a, double tolerance, double* triangle) {
  const index_t count = a.count, length = a.length();
  std::fill(triangle, triangle + count * count, 0.0);
  Workspace workspace;
  double* projections = workspace.take<double>(count);
  index_t rank = 0;
  for (index_t c = 0; c < count; ++c) {
    double* column = a.column(c);
    const Columns current{column, a.rows, 1, a.step}, previous{a.data, a.rows, c, a.step};
    double square = detail::square_norm(column, length);
    const double unit = detail::unit_of(current, square);
    double rest = square;
    for (int time = 0; time < 2 && c > 0; ++time) {
      for (index_t i = 0; i < c; i += 8) {
        detail::with_constant<8>(std::min<index_t>(8, c - i), [&](auto block) {
          detail::block_products<block.value, 1>(previous, i, current, 0, projections, 1);
        });
      }
      for (index_t i = 0; i < c; ++i) {
        rest -= projections[i] * projections[i];
        triangle[i * count + c] += projections[i] * unit;
        projections[i] = -projections[i];
      }
      combine<true>(previous, projections, 1, current);
      if (rest > 0.5 * square) break;  // Pythagoras is accurate, and so is what is left
      rest = detail::square_norm(column, length);
    }
    const double norm = std::sqrt(rest);
    const bool dependent = norm <= tolerance * std::sqrt(square);
    detail::scale(column, length, dependent ? 0 : 1 / norm);
    triangle[c * count + c] = dependent ? 0 : norm * unit;
    rank += !dependent;
  }
  return rank;
}

}  // namespace subspan
