#include "core/small_matrix/complete_basis.h"
#include "ops/angles/principal_pairs.h"

namespace subspan {
namespace {

// Principal vectors of one pair into packed rows of T, from coefficients in an orthonormal basis. Directions at right
// angles to all of the other subspace come last and without coefficients: any will do.
template <class T, class Coefficient>
void write_vectors(const Columns& basis, const Angles& angles, Coefficient&& coefficient, T* out) {
  Workspace workspace;
  const index_t count = angles.count;
  double* weights = workspace.take<double>(basis.count * count);
  for (index_t row = 0; row < basis.count; ++row) {
    for (index_t i = 0; i < count; ++i) weights[row * count + i] = coefficient(row, i);
  }
  const auto is_zero = [&](index_t i) {
    for (index_t row = 0; row < basis.count; ++row) {
      if (weights[row * count + i] != 0) return false;
    }
    return true;
  };
  index_t given = 0;
  while (given < count && !is_zero(given)) ++given;
  if (given < count) complete_basis(weights, count, 1, basis.count, given, count);
  const Columns vectors = Columns::take(basis.rows, count, workspace);
  combine<false>(basis, weights, count, vectors);
  write_rows(vectors, count > 0 ? angles.angle[0] * 0 : 0, out);
}

}  // namespace

void subspace_angles_cpu(const TensorView& A, const TensorView& B, const TensorView& values, const TensorView* info,
                         const TensorView* left, const TensorView* right, const AngleParameters& parameters,
                         int threads) {
  dispatch_float(compute_dtype(A.dtype), "subspace_angles", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(A, 2), together = pairs_together(A, B, items, threads);
    parallel_for((items + together - 1) / together, pair_threads(A, B, items, threads), [&](index_t group) {
      const index_t first = group * together, present = std::min(together, items - first);
      Workspace workspace;
      const SameItems item_of(first);
      const PrincipalPairs pairs(A, B, parameters, item_of.items, item_of.items, present, left != nullptr, workspace);
      const index_t count = pairs.count();
      for (index_t lane = 0; lane < present; ++lane) {
        const index_t item = first + lane;
        const Angles angles = pairs.angles(lane);
        if (info) info->ptr<std::int32_t>()[item] = pairs.info(lane);
        if (per_angle(parameters.function)) {
          const double* from = parameters.function == AngleFunction::kAngles ? angles.angle : angles.cosine;
          for (index_t i = 0; i < count; ++i) values.ptr<T>()[item * count + i] = static_cast<T>(from[i]);
        } else {
          values.ptr<T>()[item] = static_cast<T>(value(parameters.function, parameters.squared, angles));
        }
        if (!left) continue;
        const auto narrow = [&](index_t row, index_t i) { return pairs.narrow_coefficient(lane, row, i); };
        const auto wide = [&](index_t row, index_t i) { return pairs.wide_coefficient(lane, row, i); };
        T* of_A = left->ptr<T>() + item * pairs.rows() * count;
        T* of_B = right->ptr<T>() + item * pairs.rows() * count;
        write_vectors(pairs.narrow(lane), angles, narrow, pairs.swapped() ? of_A : of_B);
        write_vectors(pairs.wide(lane), angles, wide, pairs.swapped() ? of_B : of_A);
      }
    });
  });
}

}  // namespace subspan
