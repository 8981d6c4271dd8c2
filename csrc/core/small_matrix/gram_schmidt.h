// Tall matrices held by columns in float64: orthonormal bases by Gram and Schmidt's process, and the products between
// two such matrices.
#pragma once
#include "core/pack.h"

namespace subspan {

// `count` columns of `rows` entries, each starting at a multiple of `step`; step is a multiple of the vector length,
// and entries from `rows` to `step` are zero.
struct Columns {
  double* data;
  index_t rows, count, step;

  double* column(index_t c) const { return data + c * step; }
  static index_t step_of(index_t rows) { return round_up(std::max<index_t>(rows, 1), kLanes<double>); }
  static Columns take(index_t rows, index_t count, Workspace& workspace) {
    const index_t step = step_of(rows);
    return {workspace.take<double>(step * count), rows, count, step};
  }
};

// Copies an array (rows, count), converting and transposing on the way.
inline void read_columns(const Rows<double>& from, const Columns& to) {
  constexpr index_t lanes = kLanes<double>;
  double scratch[lanes][lanes] = {};
  for (index_t r = 0; r < to.step; r += lanes) {
    for (index_t c = 0; c < to.count; c += lanes) {
      const index_t width = std::min(lanes, to.count - c);
      Vec<double> square[lanes];
      for (index_t i = 0; i < lanes; ++i) {
        if (r + i >= to.rows) {
          square[i] = Vec<double>{};
        } else {
          const double* in = from.read(r + i, c, width, scratch[i]);
          square[i] = width == lanes ? load(in) : load_partial(in, width);
        }
      }
      transpose_square<double>(square);
      for (index_t i = 0; i < width; ++i) store(to.column(c + i) + r, square[i]);
    }
  }
}

inline double sum_lanes(Vec<double> v) {
  double sum = 0;
  for (int i = 0; i < kLanes<double>; ++i) sum += v[i];
  return sum;
}

namespace detail {

// products[i * step + j] = left[i]^T right[j] for a block of Left x Right columns.
template <int Left, int Right>
inline void block_products(const Columns& left, index_t i0, const Columns& right, index_t j0, double* products,
                           index_t step) {
  Vec<double> sums[Left][Right] = {};
  for (index_t r = 0; r < left.step; r += kLanes<double>) {
    Vec<double> b[Right];
    for (int j = 0; j < Right; ++j) b[j] = load(right.column(j0 + j) + r);
    for (int i = 0; i < Left; ++i) {
      const Vec<double> a = load(left.column(i0 + i) + r);
      for (int j = 0; j < Right; ++j) sums[i][j] += a * b[j];
    }
  }
  for (int i = 0; i < Left; ++i) {
    for (int j = 0; j < Right; ++j) products[(i0 + i) * step + j0 + j] = sum_lanes(sums[i][j]);
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
    for (index_t r = 0; r < to.step; r += kLanes<double>) {
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

// A = Q R with Q in place of A: every column is made orthogonal to those before it twice, which is enough for
// orthogonality to rounding (Giraud, Langou, Rozloznik 2005). triangle (count x count, upper, row-major) becomes R. A
// column that lies in the span of those before it, to `tolerance` times its norm, becomes zero and so does its diagonal
// entry of R. Gives how many do not.
inline index_t orthonormalize(const Columns& a, double tolerance, double* triangle) {
  const index_t count = a.count;
  constexpr index_t lanes = kLanes<double>;
  std::fill(triangle, triangle + count * count, 0.0);
  Workspace workspace;
  double* projections = workspace.take<double>(count);
  index_t rank = 0;
  const auto square_norm = [&](const double* column) {
    Vec<double> sum{};
    for (index_t r = 0; r < a.step; r += lanes) sum += load(column + r) * load(column + r);
    return sum_lanes(sum);
  };
  for (index_t c = 0; c < count; ++c) {
    double* column = a.column(c);
    double square = square_norm(column), unit = 1;
    if (!(square > 1e-280) || square > 1e280) {  // squares underflow or overflow: measure in another unit
      double largest = 0;
      for (index_t r = 0; r < a.rows; ++r) largest = std::max(largest, std::abs(column[r]));
      if (largest > 0 && largest <= std::numeric_limits<double>::max()) {
        unit = std::ldexp(1.0, std::ilogb(largest));
        for (index_t r = 0; r < a.rows; ++r) column[r] /= unit;
        square = square_norm(column);
      }
    }
    const double before = std::sqrt(square);
    const Columns current{column, a.rows, 1, a.step};
    for (int time = 0; time < 2 && c > 0; ++time) {
      const Columns previous{a.data, a.rows, c, a.step};
      products(previous, current, projections, 1);
      for (index_t i = 0; i < c; ++i) {
        triangle[i * count + c] += projections[i] * unit;
        projections[i] = -projections[i];
      }
      combine<true>(previous, projections, 1, current);
    }
    const double after = c > 0 ? std::sqrt(square_norm(column)) : before;
    const bool dependent = after <= tolerance * before;
    const double inverse = dependent ? 0 : 1 / after;
    for (index_t r = 0; r < a.step; r += lanes) store(column + r, load(column + r) * inverse);
    triangle[c * count + c] = dependent ? 0 : after * unit;
    rank += !dependent;
  }
  return rank;
}

}  // namespace subspan
