// The principal angles and vectors of up to kLanes pairs of subspaces: what is tall is done pair by pair, what is small
// side by side in SIMD lanes. All in float64, whatever the bases' type: cosines of float32 products would leave angles
// no smaller than 3e-4.
//
// With orthonormal bases S (the one with fewer columns) and L, L^T S = U C V^T gives the cosines C. Their angles are
// lost where C rounds to 1, so the sines come from the residual T = S V - L U C, of which they are the singular values:
// T^T T by Jacobi's method with relative accuracy, after the rotation by V, which separates large from small (Bjorck,
// Golub 1973; Knyazev, Argentati 2002). The angle is atan2(sine, cosine): no branch, no arccos.
#pragma once
#include <numeric>

#include "core/parallel.h"
#include "core/small_matrix/gram_schmidt.h"
#include "core/small_matrix/interleave.h"
#include "core/small_matrix/jacobi.h"
#include "ops/angles/angle_functions.h"

namespace subspan {

// How many pairs are done side by side: as many as there are lanes, unless threads would be idle or memory wasted.
inline index_t pairs_together(const TensorView& A, const TensorView& B, index_t items, int threads) {
  constexpr index_t kBytes = index_t{64} << 20;
  const index_t bytes = (A.size(-1) + B.size(-1)) * Columns::step_of(A.size(-2)) * 8;
  const index_t for_threads = (items + threads - 1) / std::max(threads, 1);
  return std::clamp<index_t>(std::min(for_threads, kBytes / std::max<index_t>(bytes, 1)), 1, kLanes<double>);
}

inline int pair_threads(const TensorView& A, const TensorView& B, index_t items, int threads) {
  const double width = static_cast<double>(A.size(-1) + B.size(-1)), rows = static_cast<double>(A.size(-2));
  return useful_threads(static_cast<double>(items) * width * width * (4 * rows + 20 * width), threads);
}

// Item first + i of both sides in pair i.
struct SameItems {
  index_t items[kLanes<double>];
  explicit SameItems(index_t first) { std::iota(items, items + kLanes<double>, first); }
};

class PrincipalPairs {
 public:
  // Pairs of item of_A[i] of A and item of_B[i] of B, i < present; keep: their bases are wanted afterwards.
  PrincipalPairs(const TensorView& A, const TensorView& B, const AngleParameters& parameters, const index_t* of_A,
                 const index_t* of_B, index_t present, bool keep, Workspace& workspace)
      : A_(A),
        B_(B),
        parameters_(parameters),
        workspace_(workspace),
        swapped_(A.size(-1) < B.size(-1)),
        rows_(A.size(-2)),
        wide_(std::max(A.size(-1), B.size(-1))),
        count_(std::min(A.size(-1), B.size(-1))),
        of_A_(of_A),
        of_B_(of_B),
        present_(present),
        keep_(keep) {
    read_and_multiply();
    cosines();
    sines();
    finish();
  }

  index_t rows() const { return rows_; }
  index_t count() const { return count_; }
  Angles angles(index_t lane) const {
    const index_t at = lane * count_;
    return {angle_ + at, cosine_ + at, sine_ + at, count_, parameters_.padded ? wide_ - count_ : 0};
  }
  // min(rank A, rank B), or -1 for a pair that is not finite.
  std::int32_t info(index_t lane) const { return info_[lane]; }

  // Principal vectors and residuals of one pair, columns in the order of the angles. Coefficients are row-major
  // (columns of the basis x count).
  bool swapped() const { return swapped_; }
  const Columns& narrow(index_t lane) const { return narrow_[lane]; }
  const Columns& wide(index_t lane) const { return wide_columns_[lane]; }
  const double* narrow_triangle(index_t lane) const { return narrow_triangle_ + lane * count_ * count_; }
  const double* wide_triangle(index_t lane) const { return wide_triangle_ + lane * wide_ * wide_; }
  double narrow_coefficient(index_t lane, index_t row, index_t i) const {
    return right_[order_[lane * count_ + i] * count_ + row][lane];
  }
  // A direction orthogonal to the narrow subspace has no partner; it gets none.
  double wide_coefficient(index_t lane, index_t row, index_t i) const {
    const double cosine = cosine_[lane * count_ + i];
    const double entry = x_[order_[lane * count_ + i] * wide_ + row][lane];
    return cosine <= jacobi::kNegligible<double> ? 0 * cosine : entry / cosine;
  }

 private:
  static constexpr index_t kWidth = kLanes<double>;
  // No sine is needed up to this squared cosine, hence none up to this sum of squared cosines.
  static constexpr double kFar = 0.5;
  using Vector = Vec<double>;

  // One pair after the other passes through buffers that stay in the first cache; kept are those that are needed again.
  void read_and_multiply() {
    narrow_triangle_ = workspace_.take<double>(kWidth * count_ * count_);
    wide_triangle_ = workspace_.take<double>(kWidth * wide_ * wide_);
    info_ = workspace_.take<std::int32_t>(kWidth);
    x_ = workspace_.take<Vector>(wide_ * count_);
    std::fill(x_, x_ + wide_ * count_, Vector{});
    double* product = workspace_.take<double>(count_ * wide_);
    Columns narrow = Columns::take(rows_, count_, workspace_), wide = Columns::take(rows_, wide_, workspace_);
    for (index_t lane = 0; lane < present_; ++lane) {
      const index_t *of_narrow = swapped_ ? of_A_ : of_B_, *of_wide = swapped_ ? of_B_ : of_A_;
      // After the last pair, the batch most likely goes on.
      const auto next = [&](const index_t* items) { return lane + 1 < present_ ? items[lane + 1] : items[lane] + 1; };
      read_columns(swapped_ ? A_ : B_, of_narrow[lane], next(of_narrow), narrow);
      read_columns(swapped_ ? B_ : A_, of_wide[lane], next(of_wide), wide);
      const double tolerance = parameters_.rank_tol;
      const auto rank_of = [&](const Columns& basis, double* triangle) {
        return parameters_.orthonormal ? independent_columns(basis) : orthonormalize(basis, tolerance, triangle);
      };
      const index_t rank = rank_of(narrow, narrow_triangle_ + lane * count_ * count_);
      const index_t other = rank_of(wide, wide_triangle_ + lane * wide_ * wide_);
      info_[lane] = static_cast<std::int32_t>(std::min(rank, other));
      products(narrow, wide, product, wide_);
      double square = 0;
      for (index_t e = 0; e < count_ * wide_; ++e) {
        x_[e][lane] = product[e];
        square += product[e] * product[e];
      }
      poison_[lane] = square * 0;
      if (!keep_ && square <= kFar * (1 - 1e-9)) continue;
      vectors_ = true;
      narrow_[lane] = narrow;
      wide_columns_[lane] = wide;
      if (lane + 1 == present_) continue;
      narrow = Columns::take(rows_, count_, workspace_);
      wide = Columns::take(rows_, wide_, workspace_);
    }
  }

  void cosines() {
    right_ = vectors_ ? workspace_.take<Vector>(count_ * count_) : nullptr;
    squares_ = workspace_.take<Vector>(count_);
    unsettled_ = svd_interleaved<double>(x_, wide_, count_, right_, squares_);
  }

  // Only where some angle may be below pi / 4: elsewhere the cosine says it all.
  bool needs_sines(index_t lane) const { return count_ > 0 && !(squares_[0][lane] * squares_[0][lane] <= kFar); }

  void sines() {
    gram_ = workspace_.take<Vector>(count_ * count_);
    for (index_t e = 0; e < count_ * count_; ++e) gram_[e] = Vector{};
    for (index_t i = 0; i < count_; ++i) gram_[i * count_ + i] = 1 - squares_[i] * squares_[i];
    bool any = false;
    for (index_t lane = 0; lane < present_; ++lane) {
      if (!needs_sines(lane)) continue;
      any = true;
      residual_gram(lane);
    }
    if (!any) return;
    Vector* rotation = workspace_.take<Vector>(count_ * count_);
    unsettled_ |= eigh_interleaved<Precision::kRelative, double>(gram_, count_, rotation, squares_);
    rotate(rotation, x_, wide_);
    rotate(rotation, right_, count_);
  }

  void residual_gram(index_t lane) {
    Workspace workspace;
    double* coefficients = workspace.take<double>(wide_ * count_);
    const Columns residual = Columns::take(rows_, count_, workspace);
    for (index_t i = 0; i < count_; ++i) {
      for (index_t row = 0; row < count_; ++row) coefficients[row * count_ + i] = right_[i * count_ + row][lane];
    }
    combine<false>(narrow_[lane], coefficients, count_, residual);
    for (index_t i = 0; i < count_; ++i) {
      for (index_t row = 0; row < wide_; ++row) coefficients[row * count_ + i] = -x_[i * wide_ + row][lane];
    }
    combine<true>(wide_columns_[lane], coefficients, count_, residual);
    products(residual, residual, coefficients, count_);
    // A column without a direction of its own counts as one that is orthogonal to everything.
    for (index_t d = 0; d < count_; ++d) {
      if (detail::square_norm(narrow_[lane].column(d), narrow_[lane].length()) != 0) continue;
      for (index_t i = 0; i < count_; ++i) {
        for (index_t j = 0; j < count_; ++j)
          coefficients[i * count_ + j] += right_[i * count_ + d][lane] * right_[j * count_ + d][lane];
      }
    }
    // Sines tell small angles apart. Those of angles beyond pi / 4 may be equal where their cosines are not: there the
    // columns stay as the cosines have them.
    const auto is_far = [&](index_t i) { return squares_[i][lane] * squares_[i][lane] <= kFar; };
    for (index_t i = 0; i < count_; ++i) {
      for (index_t j = 0; j < count_; ++j)
        gram_[i * count_ + j][lane] = i != j && (is_far(i) || is_far(j)) ? 0 : coefficients[i * count_ + j];
    }
  }

  // columns[i] = sum_j columns[j] rotation[i][j], columns of `length`.
  void rotate(const Vector* rotation, Vector* columns, index_t length) {
    Workspace workspace;
    Vector* before = workspace.take<Vector>(count_);
    for (index_t r = 0; r < length; ++r) {
      for (index_t j = 0; j < count_; ++j) before[j] = columns[j * length + r];
      for (index_t i = 0; i < count_; ++i) {
        Vector sum{};
        for (index_t j = 0; j < count_; ++j) sum += before[j] * rotation[i * count_ + j];
        columns[i * length + r] = sum;
      }
    }
  }

  void finish() {
    angle_ = workspace_.take<double>(kWidth * count_);
    cosine_ = workspace_.take<double>(kWidth * count_);
    sine_ = workspace_.take<double>(kWidth * count_);
    order_ = workspace_.take<index_t>(kWidth * count_);
    double* unsorted = workspace_.take<double>(2 * count_);
    for (index_t i = 0; i < count_; ++i)
      squares_[i] = square_root(jacobi::dot<double>(x_ + i * wide_, x_ + i * wide_, wide_));
    for (index_t lane = 0; lane < present_; ++lane) {
      const double poison = poison_[lane];
      for (index_t i = 0; i < count_; ++i) {
        unsorted[i] = squares_[i][lane] + poison;
        unsorted[count_ + i] = std::sqrt(std::max(gram_[i * count_ + i][lane], 0.0)) + poison;
      }
      index_t* order = order_ + lane * count_;
      std::iota(order, order + count_, index_t(0));
      double* angle = angle_ + lane * count_;
      const double *cosine = unsorted, *sine = unsorted + count_;
      if (poison == 0)
        for (index_t i = 1; i < count_; ++i) {  // few, and nearly sorted: the singular values were
          index_t at = i;
          // By tangents, without dividing.
          for (; at > 0 && sine[i] * cosine[order[at - 1]] < sine[order[at - 1]] * cosine[i]; --at)
            order[at] = order[at - 1];
          order[at] = i;
        }
      for (index_t i = 0; i < count_; ++i) {
        // Where ranks leave fewer angles, the last cosines are rounding errors of zero.
        cosine_[lane * count_ + i] = i < info_[lane] ? unsorted[order[i]] : poison;
        sine_[lane * count_ + i] = unsorted[count_ + order[i]];
      }
      for (index_t i = 0; i < count_; ++i) angle[i] = std::atan2(sine_[lane * count_ + i], cosine_[lane * count_ + i]);
      if (!(poison == 0) || unsettled_[lane] != 0) info_[lane] = -1;
    }
  }

  const TensorView &A_, &B_;
  const AngleParameters& parameters_;
  Workspace& workspace_;
  bool swapped_;
  index_t rows_, wide_, count_;
  const index_t *of_A_, *of_B_;
  index_t present_;
  bool keep_;
  bool vectors_ = false;  // whether any pair needs more than its cosines
  Columns narrow_[kWidth], wide_columns_[kWidth];
  double *narrow_triangle_, *wide_triangle_;
  Vector *x_, *right_, *squares_, *gram_;
  Vector poison_{};
  Mask<double> unsettled_{};
  double *angle_, *cosine_, *sine_;
  index_t* order_;
  std::int32_t* info_;
};

}  // namespace subspan
