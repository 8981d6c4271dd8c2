// Cholesky factors R of Gram matrices and their inverses: of several frames side by side in SIMD lanes where they have
// few columns, else blocked, one for a team.
#pragma once
#include "core/small_matrix/interleaved_product.h"
#include "core/small_matrix/inverse.h"
#include "ops/orthogonal/frame.h"

namespace subspan {

constexpr index_t kMostInLanes = 24;  // columns: beyond, the blocked form is faster
inline bool factored_in_lanes(index_t count) { return count <= kMostInLanes; }
// Frames that are worked on together.
inline index_t frames_together(index_t count) { return factored_in_lanes(count) ? kLanes<double> : 1; }

// make(workspace).run(first, frames, Team()) for all items, `together` at a time. What make() lays out serves several
// groups one after the other: for a few columns that takes as long as the work on them.
template <class Make>
void each_group(index_t items, index_t together, index_t count, int threads, Make&& make) {
  constexpr index_t most = 16;
  const index_t groups = (items + together - 1) / together;
  const index_t stretch = factored_in_lanes(count) ? std::clamp<index_t>(groups / (8 * threads), 1, most) : 1;
  parallel_for((groups + stretch - 1) / stretch, threads, [&](index_t index) {
    Workspace workspace;
    auto group = make(workspace);
    const index_t end = std::min(items, (index + 1) * stretch * together);
    for (index_t first = index * stretch * together; first < end; first += together)
      group.run(first, std::min(together, end - first), Team());
  });
}

namespace detail {

// lanes[c * step_c + i * step_i] = entry (c, i) of every frame's matrix, i >= c if `upper`; frames beyond the last
// repeat it.
inline void to_lanes(const Dense* frames, index_t together, index_t count, bool upper, Vec<double>* lanes,
                     index_t step_c, index_t step_i) {
  constexpr index_t width = kLanes<double>;
  for (index_t c = 0; c < count; ++c) {
    for (index_t i = upper ? c / width * width : 0; i < count; i += width) {
      Vec<double> square[width];
#pragma GCC unroll 8
      for (index_t lane = 0; lane < width; ++lane) square[lane] = load(frames[std::min(lane, together - 1)].row(c) + i);
      transpose_square<double>(square);
      for (index_t t = upper && i < c ? c - i : 0; t < std::min(width, count - i); ++t)
        lanes[c * step_c + (i + t) * step_i] = square[t];
    }
  }
}

// The inverse; `upper`: entries below the diagonal become zero.
inline void from_lanes(const Vec<double>* lanes, index_t step_c, index_t step_i, index_t together, index_t count,
                       bool upper, const Dense* frames) {
  constexpr index_t width = kLanes<double>;
  for (index_t c = 0; c < count; ++c) {
    for (index_t i = 0; i < count; i += width) {
      Vec<double> square[width];
      for (index_t t = 0; t < width; ++t)
        square[t] = i + t < count && (!upper || i + t >= c) ? lanes[c * step_c + (i + t) * step_i] : Vec<double>{};
      transpose_square<double>(square);
      for (index_t lane = 0; lane < together; ++lane) store(frames[lane].row(c) + i, square[lane]);
    }
  }
}

using Lanes = LaneMatrix<double>;

inline Vec<double> squared_norm(const Lanes& M, index_t count) {
  Vec<double> sum{};
  for (index_t i = 0; i < count * count; ++i) sum += M.data[i] * M.data[i];
  return sum;
}

// The inverse, in place, of symmetric positive definite matrices of which the lower triangle is read; NaN in the lanes
// of others. `work`: count vectors.
inline void invert_definite(const Lanes& M, index_t count, Vec<double>* work) {
  PivotLog<double, Vec<double>, Pivot::kPlain> log;
  cholesky_interleaved<Pivot::kPlain, double>(M.data, work, count, log);
  inverse_interleaved<double>(M.data, work, count);
}

}  // namespace detail

// The inverse of an upper triangular R, row by row from the last. A diagonal entry of 0 counts as infinite: its row and
// column of the inverse are 0.
inline void invert_upper(const Dense& R, const Dense& to, index_t count) {
  for (index_t i = count - 1; i >= 0; --i) {
    double* row = to.row(i);
    std::fill_n(row, to.step, 0.0);
    if (R(i, i) == 0) continue;
    row[i] = 1;
    for (index_t l = i + 1; l < count; ++l) {
      const double factor = R(i, l);
      const double* below = to.row(l);
      for (index_t j = l / kLanes<double> * kLanes<double>; j < to.step; j += kLanes<double>)
        store(row + j, load(row + j) - factor * load(below + j));
    }
    const double reciprocal = 1 / R(i, i);
    for (index_t j = i; j < count; ++j) row[j] *= reciprocal;
  }
}

// Up to kLanes frames: G = R^T R, then R^-1.
class FrameFactors {
 public:
  FrameFactors(index_t count, Workspace& workspace) : count_(count) {
    if (factored_in_lanes(count)) {
      lanes_ = workspace.take<Vec<double>>(count * count);
      reciprocals_ = workspace.take<Vec<double>>(count);
      squares_ = workspace.take<Vec<double>>(count);
    } else {
      factor_ = Factor<double>::take(count, workspace);
      half_ = {workspace.take<double>(panel_elements<double>(factor_.lower.depth, count)), factor_.lower.depth,
               factor_.lower.width};
    }
  }

  // spreads[f] = || D R^-1 ||_F^2 with D the norms of the columns, that is count for orthogonal columns and at most
  // count times the square of the condition number of the columns scaled to unit norm; NaN where G is not positive
  // definite. By every member of the team, which has more than one only for a single frame of many columns.
  void run(const Dense* grams, index_t together, const Dense* triangles, const Dense* inverses, double* spreads,
           Team team) {
    if (factored_in_lanes(count_)) {
      run_in_lanes(grams, together, triangles, inverses, spreads);
    } else {
      run_blocked(grams[0], triangles[0], inverses[0], spreads[0], team);
    }
  }

 private:
  void run_in_lanes(const Dense* grams, index_t together, const Dense* triangles, const Dense* inverses,
                    double* spreads) {
    Vec<double>* a = lanes_;  // entry (i, c), i >= c, at a[i * count + c]
    detail::to_lanes(grams, together, count_, true, a, 1, count_);
    for (index_t i = 0; i < count_; ++i) squares_[i] = a[i * count_ + i];
    PivotLog<double, Vec<double>, Pivot::kPlain> log;
    cholesky_interleaved<Pivot::kPlain, double>(a, reciprocals_, count_, log);
    detail::from_lanes(a, 1, count_, together, count_, true, triangles);
    Vec<double> spread{};
    for (index_t i = 0; i < count_; ++i) {
      Vec<double>* row = a + i * count_;
      for (index_t j = 0; j < i; ++j) {
        Vec<double> even = row[j] * a[j * count_ + j], odd{};
        index_t k = j + 1;
        for (; k + 2 <= i; k += 2) {
          even += row[k] * a[k * count_ + j];
          odd += row[k + 1] * a[(k + 1) * count_ + j];
        }
        if (k < i) even += row[k] * a[k * count_ + j];
        row[j] = -(even + odd) * reciprocals_[i];
        spread += squares_[j] * row[j] * row[j];
      }
      row[i] = reciprocals_[i];
      spread += squares_[i] * row[i] * row[i];
    }
    detail::from_lanes(a, 1, count_, together, count_, true, inverses);
    for (index_t f = 0; f < together; ++f) spreads[f] = spread[f];
  }

  void run_blocked(const Dense& gram, const Dense& triangle, const Dense& inverse, double& spread, Team team) {
    const Panels<double>& lower = factor_.lower;
    for (index_t c = team.rank(); c < count_; c += team.size()) {
      for (index_t i = c; i < count_; ++i) *lower.at(c, i) = gram(c, i);
    }
    for (index_t c = count_ + team.rank(); c < lower.depth; c += team.size()) {
      for (index_t p = 0; p * lower.width < count_; ++p) std::fill_n(lower.at(c, p * lower.width), lower.width, 0.0);
    }
    team.barrier();
    PivotLog<double, double, Pivot::kPlain> log;  // of the first member
    cholesky<Pivot::kPlain>(factor_, log, team);
    index_t turn = 0;
    for (index_t column = 0; column < count_; column += half_.width, ++turn) {
      if (turn % team.size() != team.rank()) continue;
      double* panel = half_.at(0, column);
      std::fill(panel, panel + half_.depth * half_.width, 0.0);
      for (index_t c = column; c < std::min(column + half_.width, half_.depth); ++c) *half_.at(c, c) = 1;
    }
    team.barrier();
    solve_lower(factor_, half_, count_, [](index_t column) { return column / kTileRows * kTileRows; }, team);
    team.barrier();
    for (index_t c = team.rank(); c < count_; c += team.size()) {
      for (index_t i = c; i < count_; ++i) {
        triangle(c, i) = *lower.at(c, i);
        inverse(c, i) = *half_.at(i, c);
      }
      triangle(c, c) = factor_.triangle(c / kTileRows)[c % kTileRows * (kTileRows + 1)];
    }
    team.barrier();
    if (team.rank() == 0) {
      spread = 0;
      for (index_t c = 0; c < count_; ++c) {
        double sum = 0;
        for (index_t i = c; i < count_; ++i) sum += inverse(c, i) * inverse(c, i);
        spread += gram(c, c) * sum;
      }
    }
    team.barrier();
  }

  index_t count_;
  Vec<double>* lanes_ = nullptr;
  Vec<double>* reciprocals_ = nullptr;
  Vec<double>* squares_ = nullptr;
  Factor<double> factor_;
  Panels<double> half_;
};

}  // namespace subspan
