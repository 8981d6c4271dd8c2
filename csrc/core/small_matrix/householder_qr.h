// QR by Householder reflections in float64: slower than a Cholesky factor of the Gram matrix, but Q is orthonormal to
// rounding whatever the condition or the rank.
#pragma once
#include <limits>

#include "core/small_matrix/gram_schmidt.h"

namespace subspan {

namespace detail {

// Column c minus `factor` (v . column) v.
inline void reflect(const double* v, double factor, double* column, index_t length) {
  constexpr index_t lanes = kLanes<double>;
  Vec<double> even{}, odd{};
  index_t r = 0;
  for (; r + 2 * lanes <= length; r += 2 * lanes) {
    even += load(v + r) * load(column + r);
    odd += load(v + r + lanes) * load(column + r + lanes);
  }
  for (; r < length; r += lanes) even += load(v + r) * load(column + r);
  const double along = -factor * sum_lanes(even + odd);
  for (r = 0; r < length; r += lanes) store(column + r, load(column + r) + along * load(v + r));
}

// The power of two that brings the largest entry to 1 ... 2; 1 for a column of zeros.
inline double power_of(const double* column, index_t rows) {
  double largest = 0;
  for (index_t r = 0; r < rows; ++r) largest = std::max(largest, std::abs(column[r]));
  return largest > 0 ? std::ldexp(1.0, std::ilogb(largest)) : 1;
}

}  // namespace detail

// A = Q R with Q in place of A and R (count x count, upper, row-major) with a diagonal that is not negative. The
// entries are finite. A column that lies in the span of those before it, to rounding, gets a diagonal entry of exactly
// 0, and a unit vector orthogonal to all others in Q. Gives the 1-based index of the first such column, or 0.
inline index_t householder_qr(const Columns& a, double* triangle) {
  const index_t count = a.count, length = a.length();
  Workspace workspace;
  const Columns reflectors = Columns::take(a.rows, count, workspace);
  double* factors = workspace.take<double>(count);
  std::fill(triangle, triangle + count * count, 0.0);
  index_t first_dependent = 0;
  for (index_t j = 0; j < count; ++j) {
    double* column = a.column(j);
    double* v = reflectors.column(j);
    const double unit = detail::power_of(column, a.rows);
    detail::scale(column, length, 1 / unit);
    const double whole = std::sqrt(detail::square_norm(column, length));
    for (index_t i = 0; i < j; ++i) {
      detail::reflect(reflectors.column(i), factors[i], column, length);
      triangle[i * count + j] = column[i] * unit;
    }
    std::copy_n(column, length, v);
    std::fill_n(v, j, 0.0);
    const double norm = std::sqrt(detail::square_norm(v, length));
    const double tolerance = static_cast<double>(a.rows) * std::numeric_limits<double>::epsilon();
    const bool dependent = norm <= tolerance * whole;
    if (dependent && first_dependent == 0) first_dependent = j + 1;
    const double diagonal = v[j] > 0 ? -norm : norm;  // the sign that adds
    const double pivot = v[j] - diagonal;
    // What is left of a dependent column is rounding, and of the next one like it rounding of that: no reflection.
    factors[j] = dependent ? 0 : -pivot / diagonal;
    if (!dependent) {
      detail::scale(v, length, 1 / pivot);
      v[j] = 1;
    }
    triangle[j * count + j] = dependent ? 0 : diagonal * unit;
  }
  for (index_t c = 0; c < count; ++c) {
    std::fill_n(a.column(c), length, 0.0);
    a.column(c)[c] = 1;
  }
  for (index_t j = count - 1; j >= 0; --j) {
    for (index_t c = j; c < count; ++c) detail::reflect(reflectors.column(j), factors[j], a.column(c), length);
  }
  for (index_t j = 0; j < count; ++j) {
    if (triangle[j * count + j] >= 0) continue;
    for (index_t c = j; c < count; ++c) triangle[j * count + c] = -triangle[j * count + c];
    detail::scale(a.column(j), length, -1);
  }
  return first_dependent;
}

}  // namespace subspan
