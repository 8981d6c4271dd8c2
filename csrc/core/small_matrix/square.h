// Small square matrices in float64, products of them by the micro-kernel, and the few steps around such products.
#pragma once
#include <limits>

#include "core/gemm.h"
#include "core/workspace.h"

namespace subspan {

// size x size, in panels; what pads them is zero at first and never enters a result.
struct Square {
  Panels<double> panels;
  index_t size = 0;
  index_t stored = 0;  // entries, with the padding

  static Square take(index_t size, Workspace& workspace) {
    const index_t depth = round_up(size, kTileRows);
    const index_t stored = panel_elements<double>(depth, size);
    const Square square{{workspace.take<double>(stored), depth, panel_width<double>(size)}, size, stored};
    std::fill_n(square.panels.data, stored, 0.0);
    return square;
  }
  index_t elements() const { return stored; }
  double* data() const { return panels.data; }
  // Most squares are one panel: no division then.
  double& operator()(index_t row, index_t column) const {
    return column < panels.width ? panels.data[row * panels.width + column] : *panels.at(row, column);
  }
};

namespace detail {
struct StoreSquare {
  Panels<double> to;
  double keep, scale;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<double> (&sums)[kTileRows][Vectors]) const {
    double* target = to.at(row, column);
    for (int i = 0; i < kTileRows; ++i, target += to.width) {
      for (int v = 0; v < Vectors; ++v) {
        Vec<double> value = sums[i][v] * scale;
        if (keep != 0) value += load(target + v * kLanes<double>) * keep;
        store(target + v * kLanes<double>, value);
      }
    }
  }
};
}  // namespace detail

// to = keep * to + scale * left^T right. A symmetric left operand is its own transpose. `to` is neither operand.
inline void multiply_into(const Square& to, const Square& left, const Square& right, double scale = 1,
                          double keep = 0) {
  multiply(left.panels, left.size, right.panels, right.size, left.size, Part::kAll, Team(),
           detail::StoreSquare{to.panels, keep, scale});
}

inline void add_to_diagonal(const Square& square, double value) {
  for (index_t i = 0; i < square.size; ++i) square(i, i) += value;
}

// to += scale * from
inline void add_scaled(const Square& to, double scale, const Square& from) {
  double* out = to.data();
  const double* in = from.data();
  for (index_t i = 0; i < to.elements(); ++i) out[i] += scale * in[i];
}

inline void transpose_into(const Square& to, const Square& from) {
  for (index_t i = 0; i < to.size; ++i) {
    for (index_t j = 0; j < to.size; ++j) to(i, j) = from(j, i);
  }
}

// The largest sum of absolute values in a row, which bounds every eigenvalue; NaN where an entry is.
inline double row_sum_norm(const Square& square) {
  double norm = 0;
  for (index_t i = 0; i < square.size; ++i) {
    double sum = 0;
    for (index_t j = 0; j < square.size; ++j) sum += std::fabs(square(i, j));
    norm = sum > norm || sum != sum ? sum : norm;
    if (norm != norm) break;
  }
  return norm;
}

// A = L L^T into the lower triangle of A; a pivot that is not positive makes the factor NaN.
inline void cholesky_in_place(const Square& A) {
  for (index_t j = 0; j < A.size; ++j) {
    for (index_t p = 0; p < j; ++p) {
      const double factor = A(j, p);
      for (index_t i = j; i < A.size; ++i) A(i, j) -= factor * A(i, p);
    }
    const double pivot = std::sqrt(A(j, j));  // NaN below zero
    A(j, j) = pivot;
    const double inverse = pivot > 0 ? 1 / pivot : std::numeric_limits<double>::quiet_NaN();
    for (index_t i = j + 1; i < A.size; ++i) A(i, j) *= inverse;
    if (!(pivot > 0)) A(j, j) = inverse;
  }
}

// X = X R^-1 for the upper triangle R. Rows are contiguous within a panel; what is done to one row does not wait for
// another, so they take turns.
inline void solve_right(const Square& X, const Square& R) {
  const index_t width = X.panels.width;
  for (index_t c = 0; c < X.size; ++c) {
    const double inverse = 1 / R(c, c);
    for (index_t row = 0; row < X.size; ++row) X(row, c) *= inverse;
    for (index_t first = c + 1; first < X.size;) {
      const index_t end = std::min(X.size, (first / width + 1) * width);
      const double* r = &R(c, first);
      for (index_t row = 0; row < X.size; ++row) {
        const double value = X(row, c);
        double* x = &X(row, first);
        for (index_t i = 0; i < end - first; ++i) x[i] -= r[i] * value;
      }
      first = end;
    }
  }
}

}  // namespace subspan
