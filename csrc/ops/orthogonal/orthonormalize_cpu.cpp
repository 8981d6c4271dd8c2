#include "core/dispatch.h"
#include "core/small_matrix/householder_qr.h"
#include "ops/orthogonal/frame_float.h"
#include "ops/orthogonal/frame_vectors.h"
#include "ops/orthogonal/orthonormalize.h"
#include "ops/orthogonal/orthonormalize_tiny.h"
#include "ops/orthogonal/polar_factor.h"

namespace subspan {
namespace {

// A = Q R by the Cholesky factor R of A^T A, both of them and Q = A R^-1 in float64 for every type: the orthogonality
// of Q errs by count * spread units of rounding, spread <= the square of the condition number (FrameFactors). Where
// that is too much for the type of Q, the same is done to Q once more; where a second pass could not mend it,
// Householder's reflections take over. Many columns of float32 are first tried with products in float32, which is
// enough for condition numbers of about 2.
constexpr double kUnit = std::numeric_limits<double>::epsilon();
constexpr double kMostError = 0.01;  // of a first pass
template <class T>
inline double once_is_enough(index_t count) {
  const double columns = static_cast<double>(count);
  return sizeof(T) == 4 ? 1e-8 / (kUnit * columns) : 4 * columns;
}

TensorView transposed(TensorView view) {
  std::swap(view.shape[view.ndim - 1], view.shape[view.ndim - 2]);
  std::swap(view.stride[view.ndim - 1], view.stride[view.ndim - 2]);
  return view;
}

// Up to kLanes frames of few columns, or one of many by a team.
template <class T>
class Group {
 public:
  Group(const FrameCall<T>& call, index_t together, int team_size, Workspace& workspace)
      : call_(call),
        count_(call.count),
        block_(frame_block(call.length, call.count)),
        factors_(count_, workspace),
        polar_(call.polar ? count_ : 0, sizeof(T) == 4 ? 1e12 : 1e5, workspace),
        blocks_(workspace.take<Dense>(team_size)) {
    for (int member = 0; member < team_size; ++member) blocks_[member] = Dense::take(block_, count_, workspace);
    if (multiplied_in_float<T>(count_)) {
      weights_float_ = {workspace.take<float>(count_ * count_), count_};
      A_rows_ = take_float_rows(call.A_frame(0), workspace);
      Q_rows_ = take_float_rows(call.Q_frame(0), workspace);
    }
    for (Dense** slots : {&grams_, &triangles_, &inverses_, &weights_, &again_, &results_}) {
      const bool needed = call.polar || (slots != &weights_ && slots != &results_);
      *slots = workspace.take<Dense>(together);
      for (index_t f = 0; f < together && needed; ++f) (*slots)[f] = Dense::take(count_, count_, workspace);
    }
  }

  // Frames first ... first + together - 1, by every member of the team.
  void run(index_t first, index_t together, Team team) {
    if (multiplied_in_float<T>(count_) && run_in_float(first, team)) return;
    bool failed[kLanes<double>], repeat[kLanes<double>];
    double spreads[kLanes<double>];
    for (index_t f = 0; f < together; ++f) gram(call_.A_frame(first + f), grams_[f], team);
    factors_.run(grams_, together, triangles_, inverses_, spreads_, team);
    bool any_once = false;
    index_t repeated = 0, frames[kLanes<double>];
    for (index_t f = 0; f < together; ++f) {
      spreads[f] = spreads_[f];
      failed[f] = !(spreads[f] * static_cast<double>(count_) * kUnit <= kMostError);
      repeat[f] = !failed[f] && spreads[f] > once_is_enough<T>(count_);
      any_once |= !failed[f] && !repeat[f];
      if (repeat[f]) frames[repeated++] = f;
    }
    if (any_once) finish(triangles_, inverses_, together, spreads[0], team);
    for (index_t f = 0; f < together; ++f) {
      if (failed[f]) continue;
      apply(call_.A_frame(first + f), call_.polar && !repeat[f] ? weights_[f] : inverses_[f], !call_.polar || repeat[f],
            call_.Q_frame(first + f), team);
      if (!repeat[f]) give(first + f, triangle(f), team);
    }
    team.barrier();
    if (repeated > 0) second_pass(first, frames, repeated, spreads, team);
    for (index_t f = 0; f < together; ++f) {
      if (failed[f] && team.rank() == 0) by_reflections(first + f);
    }
  }

 private:
  // One frame. False, and nothing done, where it is too ill-conditioned for that.
  bool run_in_float(index_t item, Team team) {
    const Frame A = call_.A_frame(item), Q = call_.Q_frame(item);
    const FloatRows rows = rows_of(A, A_rows_), results = rows_of(Q, Q_rows_);
    const index_t whole = whole_tiles(call_.length), rest = call_.length - whole;
    const Dense& block = blocks_[0];
    if (team.rank() == 0) {
      std::fill_n(grams_[0].data, Dense::elements(count_, count_), 0.0);
      read_float_rows(A, block, rows);
      A.pack(whole, rest, block);
    }
    team.barrier();
    add_float_products(rows, rows, count_, whole, true, grams_[0], team);
    team.barrier();
    if (team.rank() == 0) add_products(block, block, count_, rest, true, grams_[0]);
    team.barrier();
    factors_.run(grams_, 1, triangles_, inverses_, spreads_, team);
    if (!(spreads_[0] <= 4 * static_cast<double>(count_))) return false;
    finish(triangles_, inverses_, 1, spreads_[0], team);
    const Dense& weights = call_.polar ? weights_[0] : inverses_[0];
    if (team.rank() == 0) {
      round_to_float(weights, count_, weights_float_);
      if (rest > 0) write_product<T, 1>({block}, {weights}, !call_.polar, whole, rest, Q);
      give(item, triangle(0), team);
    }
    team.barrier();
    const index_t share = round_up((whole + team.size() - 1) / team.size(), kLanes<float>);
    const index_t begin = std::min(whole, share * team.rank()), end = std::min(whole, begin + share);
    write_float_product<1>({rows}, {weights_float_}, count_, !call_.polar, begin, end, results);
    write_float_rows(results, begin, end, Q);
    team.barrier();
    return true;
  }

  // Members share the block that they pack.
  void gram(const Frame& frame, const Dense& to, Team team) {
    if (count_ == 1) {  // few columns have no team
      to(0, 0) = frame.square();
      return;
    }
    if (team.rank() == 0) std::fill_n(to.data, Dense::elements(count_, count_), 0.0);
    if (team.size() == 1 && rows_are_vectors<T>(frame)) return add_vector_products<T>(frame, frame, block_, to);
    each_block(call_.length, block_, [&](index_t first, index_t rows) {
      const index_t share = round_up((rows + team.size() - 1) / team.size(), kLanes<double>);
      const index_t begin = std::min(rows, share * team.rank()), end = std::min(rows, begin + share);
      if (begin < end) frame.pack(first + begin, end - begin, {blocks_[0].row(begin), blocks_[0].step});
      team.barrier();
      add_products(blocks_[0], blocks_[0], count_, rows, true, to, team);
      team.barrier();
    });
  }

  void apply(const Frame& from, const Dense& weights, bool triangular, const Frame& to, Team team) {
    if (from.is_vector() && to.is_vector() && from.same_type(to))
      return to.template write_multiple<T>(weights(0, 0), from);
    if (team.size() == 1 && rows_are_vectors<T>(from) && rows_are_vectors<T>(to))
      return write_vector_product<T, 1>({from}, {weights}, to);
    const Dense& block = blocks_[team.rank()];
    index_t turn = 0;
    each_block(call_.length, block_, [&](index_t first, index_t rows) {
      if (turn++ % team.size() != team.rank()) return;
      from.pack(first, rows, block);
      write_product<T, 1>({block}, {weights}, triangular, first, rows, to);
    });
  }

  // For the polar factors: weights = R^-1 U, results = H.
  void finish(const Dense* triangles, const Dense* inverses, index_t together, double spread, Team team) {
    if (!call_.polar) return;
    if (team.rank() == 0) {
      polar_.run(triangles, inverses, together, spread, call_.triangle != nullptr, again_, results_);
      for (index_t f = 0; f < together; ++f) multiply_dense(inverses[f], again_[f], count_, weights_[f]);
    }
    team.barrier();
  }

  const Dense& triangle(index_t f) const { return call_.polar ? results_[f] : triangles_[f]; }

  // A = Q R with a Q that is not yet orthonormal to rounding: Q = Q' R', A = Q' (R' R).
  void second_pass(index_t first, const index_t* frames, index_t repeated, const double* spreads, Team team) {
    Dense R[kLanes<double>], inverses[kLanes<double>], grams[kLanes<double>], triangles[kLanes<double>];
    for (index_t i = 0; i < repeated; ++i) {
      const index_t f = frames[i];
      grams[i] = grams_[f], triangles[i] = again_[f], inverses[i] = inverses_[f];
      gram(call_.Q_frame(first + f), grams[i], team);
    }
    factors_.run(grams, repeated, triangles, inverses, spreads_, team);
    if (team.rank() == 0) {
      for (index_t i = 0; i < repeated; ++i) {
        const index_t f = frames[i];
        multiply_dense(triangles[i], triangles_[f], count_, grams_[f]);  // rounding leaves no entry below the diagonal
        std::copy_n(grams_[f].data, Dense::elements(count_, count_), triangles_[f].data);
        R[i] = triangles_[f];
      }
      if (call_.polar) second_polar(R, inverses, frames, repeated, spreads);
    }
    team.barrier();
    for (index_t i = 0; i < repeated; ++i) {
      const index_t f = frames[i];
      apply(call_.Q_frame(first + f), call_.polar ? weights_[f] : inverses[i], !call_.polar, call_.Q_frame(first + f),
            team);
      give(first + f, triangle(f), team);
    }
    team.barrier();
  }

  // The iteration wants R^-1 = R1^-1 R2^-1, whose norm alone it uses: that of R1^-1 is as good, but no longer at hand.
  void second_polar(const Dense* R, const Dense* inverses, const index_t* frames, index_t repeated,
                    const double* spreads) {
    Dense U[kLanes<double>], H[kLanes<double>];
    double spread = 0;
    for (index_t i = 0; i < repeated; ++i) {
      U[i] = again_[frames[i]], H[i] = results_[frames[i]];
      spread = std::max(spread, spreads[frames[i]]);
    }
    if (!factored_in_lanes(count_)) invert_upper(R[0], grams_[0], count_);
    polar_.run(R, grams_, repeated, spread, call_.triangle != nullptr, U, H);
    for (index_t i = 0; i < repeated; ++i) multiply_dense(inverses[i], U[i], count_, weights_[frames[i]]);
  }

  void give(index_t item, const Dense& triangle, Team team) const {
    if (team.rank() != 0) return;
    if (call_.triangle) {
      T* out = call_.triangle + item * count_ * count_;
      for (index_t i = 0; i < count_; ++i, out += count_) {
        for (index_t j = 0; j < count_; j += kLanes<double>)
          detail::store_as(out + j, load(triangle.row(i) + j), count_ - j);
      }
    }
    if (call_.info) call_.info[item] = 0;
  }

  void by_reflections(index_t item) {
    Workspace workspace;
    const Columns q = Columns::take(call_.length, count_, workspace);
    double* triangle = workspace.take<double>(count_ * count_);
    read_columns(call_.rows ? transposed(call_.A) : call_.A, item, item, q);
    double poison = 0;
    for (index_t c = 0; c < count_; ++c) {
      for (index_t r = 0; r < call_.length; ++r) poison += q.column(c)[r] * 0;
    }
    index_t status = -1;
    if (poison == 0) {
      status = householder_qr(q, triangle);
      if (call_.polar) status = turn(q, triangle);
    } else {
      std::fill_n(triangle, count_ * count_, poison);
      for (index_t c = 0; c < count_; ++c) std::fill_n(q.column(c), call_.length, poison);
    }
    T* out = call_.Q + item * call_.length * count_;
    for (index_t r = 0; r < call_.length; ++r) {
      for (index_t c = 0; c < count_; ++c)
        out[call_.rows ? c * call_.length + r : r * count_ + c] = static_cast<T>(q.column(c)[r]);
    }
    for (index_t e = 0; call_.triangle && e < count_ * count_; ++e)
      call_.triangle[item * count_ * count_ + e] = static_cast<T>(triangle[e]);
    if (call_.info) call_.info[item] = static_cast<std::int32_t>(status);
  }

  // From Q R with R = U H to (Q U) H. Gives the status.
  index_t turn(const Columns& q, double* triangle) {
    Workspace workspace;
    const Dense R = Dense::take(count_, count_, workspace), U = Dense::take(count_, count_, workspace),
                H = Dense::take(count_, count_, workspace);
    for (index_t i = 0; i < count_; ++i) std::copy_n(triangle + i * count_, count_, R.row(i));
    const index_t status = polar_.run_any(R, U, H);
    const Columns turned = Columns::take(call_.length, count_, workspace);
    combine<false>(q, U.data, U.step, turned);
    for (index_t c = 0; c < count_; ++c) std::copy_n(turned.column(c), q.length(), q.column(c));
    for (index_t i = 0; i < count_; ++i) std::copy_n(H.row(i), count_, triangle + i * count_);
    return status;
  }

  FrameCall<T> call_;
  index_t count_, block_;
  FrameFactors factors_;
  PolarFactors polar_;
  Dense* blocks_;
  FloatRows weights_float_, A_rows_, Q_rows_;
  Dense *grams_, *triangles_, *inverses_, *weights_, *again_, *results_;
  double spreads_[kLanes<double>];
};

template <class T>
void run(const FrameCall<T>& call, int threads) {
  const double columns = static_cast<double>(call.count), items = static_cast<double>(call.items);
  const double flops = 4 * columns * columns * static_cast<double>(call.length) + columns * columns * columns;
  const int used = useful_threads(items * flops, threads);
  if (!call.polar && tiny_frames(call.length, call.count)) {
    orthonormalize_tiny<T>(call, used, [&](index_t item) {
      Workspace workspace;
      Group<T>(call, 1, 1, workspace).run(item, 1, Team());
    });
    return;
  }
  if (call.items < used && !factored_in_lanes(call.count)) {
    for (index_t item = 0; item < call.items; ++item) {
      Workspace workspace;
      Group<T> group(call, 1, used, workspace);
      parallel_team(used, [&](Team team) { group.run(item, 1, team); });
    }
    return;
  }
  // What a lane computes does not depend on the frames beside it. Those of a group are read twice, from cache.
  const index_t cached =
      std::max<index_t>(1, (128 << 10) / (call.length * call.count * static_cast<index_t>(sizeof(T))));
  const index_t together = std::clamp<index_t>(call.items / used, 1, std::min(cached, frames_together(call.count)));
  each_group(call.items, together, call.count, used,
             [&](Workspace& workspace) { return Group<T>(call, together, 1, workspace); });
}

}  // namespace

void orthonormalize_cpu(const TensorView& A, const TensorView& Q, const TensorView* triangle, const TensorView* info,
                        bool polar, bool rows, int threads) {
  const index_t items = batch_count(A, 2), count = A.size(rows ? -2 : -1);
  if (items == 0) return;
  if (count == 0) {
    for (index_t item = 0; info && item < items; ++item) info->ptr<std::int32_t>()[item] = 0;
    return;
  }
  dispatch_float(Q.dtype, "orthonormalize", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run<T>({A, Q, Q.ptr<T>(), triangle ? triangle->ptr<T>() : nullptr, info ? info->ptr<std::int32_t>() : nullptr,
            items, A.size(rows ? -1 : -2), count, polar, rows},
           threads);
  });
}

}  // namespace subspan
