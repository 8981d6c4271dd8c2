// With h_i = (d value / d angle_i) / sine_i, the gradient with respect to an orthonormal basis is minus the residual of
// the other side's principal vectors, weighted: d / dL = -(S V - L U C) diag(h) U^T, and the same with S and L
// exchanged. It is orthogonal to the basis; of a basis L R it is that times R^{-T}. Nowhere a difference of singular
// values is divided by.
#include "ops/angles/principal_pairs.h"

namespace subspan {
namespace {

// Solves R y = v for upper triangular R; directions without a pivot get 0.
void solve_upper(const double* triangle, index_t size, double* v) {
  for (index_t i = size - 1; i >= 0; --i) {
    double sum = v[i];
    for (index_t j = i + 1; j < size; ++j) sum -= triangle[i * size + j] * v[j];
    v[i] = triangle[i * size + i] != 0 ? sum / triangle[i * size + i] : 0;
  }
}

// One side of a pair: `own` is the basis that the gradient belongs to, with coefficients (own.count x count) of its
// principal vectors; `other` the other basis with its.
struct Side {
  const Columns& own;
  const Columns& other;
  const double* own_vectors;
  const double* other_vectors;
  const double* triangle;  // of the basis as it was given, null for an orthonormal one
};

// d_own = -(other other_vectors - own own_vectors C) diag(weights) (R^{-1} own_vectors)^T into packed rows.
template <class T>
void write_gradient(const Side& side, const Angles& angles, const double* weights, T* out) {
  Workspace workspace;
  const index_t count = angles.count, width = side.own.count;
  double* coefficients = workspace.take<double>(width * count);
  const Columns residual = Columns::take(side.own.rows, count, workspace);
  combine<false>(side.other, side.other_vectors, count, residual);
  for (index_t row = 0; row < width; ++row) {
    for (index_t i = 0; i < count; ++i)
      coefficients[row * count + i] = -side.own_vectors[row * count + i] * angles.cosine[i];
  }
  combine<true>(side.own, coefficients, count, residual);
  // Of a small angle, and times up to 1 / sine, rounding errors along the own subspace would be seen.
  constexpr double kSmall = 1e-2;
  if (count > 0 && angles.sine[0] < kSmall) {
    double* along = workspace.take<double>(width * count);
    products(side.own, residual, along, count);
    for (index_t e = 0; e < width * count; ++e) along[e] = -along[e];
    combine<true>(side.own, along, count, residual);
  }
  double* transposed = workspace.take<double>(count * width);  // row i: what column i of the residual adds to a row
  for (index_t i = 0; i < count; ++i) {
    double* row = transposed + i * width;
    for (index_t j = 0; j < width; ++j) row[j] = side.own_vectors[j * count + i];
    if (side.triangle) solve_upper(side.triangle, width, row);
    for (index_t j = 0; j < width; ++j) row[j] *= -weights[i];
  }
  constexpr index_t lanes = kLanes<double>;
  for (index_t r = 0; r < residual.rows; r += lanes) {
    const index_t present = std::min(lanes, residual.rows - r);
    for (index_t j = 0; j < width; j += lanes) {
      const index_t columns = std::min(lanes, width - j);
      Vec<double> square[lanes] = {};
      for (index_t i = 0; i < count; ++i) {
        const Vec<double> t = load(residual.column(i) + r);
        for (index_t c = 0; c < columns; ++c) square[c] += t * transposed[i * width + j + c];
      }
      transpose_square<double>(square);
      for (index_t k = 0; k < present; ++k) {
        for (index_t c = 0; c < columns; ++c) out[(r + k) * width + j + c] = static_cast<T>(square[k][c]);
      }
    }
  }
}

}  // namespace

void subspace_angles_gradient_cpu(const TensorView& A, const TensorView& B, const TensorView& upstream,
                                  const TensorView& d_A, const TensorView& d_B, const AngleParameters& parameters,
                                  int threads) {
  dispatch_float(compute_dtype(A.dtype), "subspace_angles_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(A, 2), together = pairs_together(A, B, items, threads);
    const bool vector = per_angle(parameters.function);
    parallel_for((items + together - 1) / together, pair_threads(A, B, 3 * items, threads), [&](index_t group) {
      const index_t first = group * together, present = std::min(together, items - first);
      Workspace workspace;
      const SameItems item_of(first);
      const PrincipalPairs pairs(A, B, parameters, item_of.items, item_of.items, present, true, workspace);
      const index_t count = pairs.count();
      double* h = workspace.take<double>(count);
      for (index_t lane = 0; lane < present; ++lane) {
        const index_t item = first + lane;
        const Angles angles = pairs.angles(lane);
        const Columns &narrow = pairs.narrow(lane), &wide = pairs.wide(lane);
        Workspace of_pair;
        double* narrow_vectors = of_pair.take<double>(narrow.count * count);
        double* wide_vectors = of_pair.take<double>(wide.count * count);
        for (index_t i = 0; i < count; ++i) {
          for (index_t row = 0; row < narrow.count; ++row)
            narrow_vectors[row * count + i] = pairs.narrow_coefficient(lane, row, i);
          for (index_t row = 0; row < wide.count; ++row)
            wide_vectors[row * count + i] = pairs.wide_coefficient(lane, row, i);
        }
        if (vector) {
          for (index_t i = 0; i < count; ++i) {
            const double g =
                static_cast<double>(static_cast<const T*>(batch_item(upstream, 1, item))[i * upstream.step(-1)]);
            const bool angle = parameters.function == AngleFunction::kAngles;
            h[i] = angle ? (angles.sine[i] != 0 ? g / angles.sine[i] : 0) : -g;
          }
        } else {
          weights(parameters.function, parameters.squared, angles, h);
          const double g = static_cast<double>(*static_cast<const T*>(batch_item(upstream, 0, item)));
          for (index_t i = 0; i < count; ++i) h[i] *= g;
        }
        const bool given = parameters.orthonormal;
        const Side of_narrow{narrow, wide, narrow_vectors, wide_vectors, given ? nullptr : pairs.narrow_triangle(lane)};
        const Side of_wide{wide, narrow, wide_vectors, narrow_vectors, given ? nullptr : pairs.wide_triangle(lane)};
        write_gradient(pairs.swapped() ? of_narrow : of_wide, angles, h,
                       d_A.ptr<T>() + item * pairs.rows() * A.size(-1));
        write_gradient(pairs.swapped() ? of_wide : of_narrow, angles, h,
                       d_B.ptr<T>() + item * pairs.rows() * B.size(-1));
      }
    });
  });
}

}  // namespace subspan
