#include "core/dispatch.h"
#include "ops/orthogonal/frame_float.h"
#include "ops/orthogonal/frame_vectors.h"
#include "ops/orthogonal/orthonormalize.h"
#include "ops/orthogonal/polar_gradient.h"

namespace subspan {
namespace {

struct Call {
  const TensorView &Q, &triangle;
  const TensorView *d_Q, *d_triangle;
  const TensorView& d_A;
  bool polar, rows;
  index_t length, count;
};

// Two passes over Q and dQ: their product P = dQ^T Q, then dQ left + Q right with small matrices left and right that
// follow from P.
template <class T>
class Group {
 public:
  Group(const Call& call, index_t together, int team_size, Workspace& workspace)
      : call_(call),
        count_(call.count),
        block_(frame_block(call.length, call.count)),
        polar_(call.polar ? count_ : 0, sizeof(T) == 4 ? 0x1p-23 : 0x1p-52, workspace),
        blocks_(workspace.take<Dense>(2 * team_size)),
        work_(Dense::take(count_, count_, workspace)) {
    for (int member = 0; member < 2 * team_size; ++member) blocks_[member] = Dense::take(block_, count_, workspace);
    if (in_float()) {
      for (FloatRows* weights : {&left_float_, &right_float_})
        *weights = {workspace.take<float>(count_ * count_), count_};
      Q_rows_ = take_float_rows(Q(0), workspace);
      upstream_rows_ = take_float_rows(upstream(0), workspace);
      d_A_rows_ = take_float_rows({call.d_A, 0, call.rows}, workspace);
    }
    for (Dense** slots : {&triangles_, &products_, &upstream_, &left_, &right_}) {
      *slots = workspace.take<Dense>(together);
      for (index_t f = 0; f < together; ++f) (*slots)[f] = Dense::take(count_, count_, workspace);
    }
  }

  void run(index_t first, index_t together, Team team) {
    for (index_t f = 0; f < together; ++f) {
      if (team.rank() == 0) {
        std::fill_n(products_[f].data, Dense::elements(count_, count_), 0.0);
        Frame(call_.triangle, first + f, false).pack(0, count_, triangles_[f]);
        if (call_.d_triangle) Frame(*call_.d_triangle, first + f, false).pack(0, count_, upstream_[f]);
      }
      if (call_.d_Q) add_product(first + f, products_[f], team);
    }
    team.barrier();
    if (team.rank() == 0) {
      if (call_.polar) {
        const bool square = call_.length == count_;
        polar_.run(triangles_, products_, upstream_, together, square, left_, right_);
      } else {
        for (index_t f = 0; f < together; ++f) triangular(f);
      }
    }
    team.barrier();
    for (index_t f = 0; f < together; ++f) apply(first + f, f, team);
  }

 private:
  Frame Q(index_t item) const { return {call_.Q, item, call_.rows}; }
  Frame upstream(index_t item) const { return {*call_.d_Q, item, call_.rows}; }

  bool in_float() const { return multiplied_in_float<T>(count_) && call_.d_Q; }

  void add_float_product(index_t item, const Dense& to, Team team) {
    const FloatRows q = rows_of(Q(item), Q_rows_), d_q = rows_of(upstream(item), upstream_rows_);
    const index_t whole = whole_tiles(call_.length), rest = call_.length - whole;
    if (team.rank() == 0) {
      read_float_rows(Q(item), blocks_[0], q);
      read_float_rows(upstream(item), blocks_[0], d_q);
    }
    team.barrier();
    add_float_products(d_q, q, count_, whole, false, to, team);
    team.barrier();
    if (team.rank() > 0) return;
    Q(item).pack(whole, rest, blocks_[0]);
    upstream(item).pack(whole, rest, blocks_[1]);
    add_products(blocks_[1], blocks_[0], count_, rest, false, to);
  }

  void apply_in_float(index_t item, index_t f, Team team) {
    const Frame to(call_.d_A, item, call_.rows);
    const FloatRows q = rows_of(Q(item), Q_rows_), d_q = rows_of(upstream(item), upstream_rows_),
                    out = rows_of(to, d_A_rows_);
    const index_t whole = whole_tiles(call_.length), rest = call_.length - whole;
    if (team.rank() == 0) {
      round_to_float(left_[f], count_, left_float_);
      round_to_float(right_[f], count_, right_float_);
      if (rest > 0)  // still packed
        write_product<T, 2>({blocks_[1], blocks_[0]}, {left_[f], right_[f]}, false, whole, rest, to);
    }
    team.barrier();
    const index_t share = round_up((whole + team.size() - 1) / team.size(), kLanes<float>);
    const index_t begin = std::min(whole, share * team.rank()), end = std::min(whole, begin + share);
    write_float_product<2>({d_q, q}, {left_float_, right_float_}, count_, false, begin, end, out);
    write_float_rows(out, begin, end, to);
  }

  // Members share the blocks that they pack.
  void add_product(index_t item, const Dense& to, Team team) {
    if (in_float()) return add_float_product(item, to, team);
    if (team.size() == 1 && rows_are_vectors<T>(Q(item)) && rows_are_vectors<T>(upstream(item)))
      return add_vector_products<T>(upstream(item), Q(item), block_, to);
    each_block(call_.length, block_, [&](index_t first, index_t rows) {
      const index_t share = round_up((rows + team.size() - 1) / team.size(), kLanes<double>);
      const index_t begin = std::min(rows, share * team.rank()), end = std::min(rows, begin + share);
      if (begin < end) {
        Q(item).pack(first + begin, end - begin, {blocks_[0].row(begin), blocks_[0].step});
        upstream(item).pack(first + begin, end - begin, {blocks_[1].row(begin), blocks_[1].step});
      }
      team.barrier();
      add_products(blocks_[1], blocks_[0], count_, rows, false, to, team);
      team.barrier();
    });
  }

  // left = R^-T, right = C R^-T.
  void triangular(index_t f) {
    const Dense &R = triangles_[f], &P = products_[f], &C = work_, &inverse = right_[f];
    if (call_.d_triangle) {
      transpose(upstream_[f], C);
      dense_product(R.data, R.step, 1, C, count_, count_, false, Team(), StoreDense{left_[f], left_[f], 0, 1});
    }
    for (index_t i = 0; i < count_; ++i) {
      for (index_t j = 0; j <= i; ++j) {
        const double entry = (call_.d_triangle ? left_[f](i, j) : 0) - P(i, j);
        C(i, j) = entry, C(j, i) = entry;
      }
    }
    invert_upper(R, inverse, count_);
    transpose(inverse, left_[f]);
    multiply_dense(C, left_[f], count_, right_[f]);
  }

  void transpose(const Dense& from, const Dense& to) const {
    for (index_t i = 0; i < count_; ++i) {
      for (index_t j = 0; j < count_; ++j) to(i, j) = from(j, i);
    }
  }

  void apply(index_t item, index_t f, Team team) {
    if (in_float()) return apply_in_float(item, f, team);
    const Frame q = Q(item), to(call_.d_A, item, call_.rows);
    const bool both = call_.d_Q && !(call_.polar && call_.length == count_);
    if (team.size() == 1 && rows_are_vectors<T>(q) && rows_are_vectors<T>(to)) {
      if (!both) return write_vector_product<T, 1>({q}, {right_[f]}, to);
      if (rows_are_vectors<T>(upstream(item)))
        return write_vector_product<T, 2>({upstream(item), q}, {left_[f], right_[f]}, to);
    }
    const Dense &block = blocks_[2 * team.rank()], &other = blocks_[2 * team.rank() + 1];
    index_t turn = 0;
    each_block(call_.length, block_, [&](index_t first, index_t rows) {
      if (turn++ % team.size() != team.rank()) return;
      q.pack(first, rows, block);
      if (both) {
        upstream(item).pack(first, rows, other);
        write_product<T, 2>({other, block}, {left_[f], right_[f]}, false, first, rows, to);
      } else {
        write_product<T, 1>({block}, {right_[f]}, false, first, rows, to);
      }
    });
  }

  const Call& call_;
  index_t count_, block_;
  PolarGradient polar_;
  Dense* blocks_;
  Dense work_;
  FloatRows left_float_, right_float_, Q_rows_, upstream_rows_, d_A_rows_;
  Dense *triangles_, *products_, *upstream_, *left_, *right_;
};

}  // namespace

void orthonormalize_gradient_cpu(const TensorView& Q, const TensorView& triangle, const TensorView* d_Q,
                                 const TensorView* d_triangle, const TensorView& d_A, bool polar, bool rows,
                                 int threads) {
  if (d_A.numel() == 0) return;
  dispatch_float(d_A.dtype, "orthonormalize_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(Q, 2), length = Q.size(rows ? -1 : -2), count = Q.size(rows ? -2 : -1);
    const Call call{Q, triangle, d_Q, d_triangle, d_A, polar, rows, length, count};
    const double columns = static_cast<double>(count);
    const double flops = 8 * columns * columns * static_cast<double>(length);
    const int used = useful_threads(static_cast<double>(items) * flops, threads);
    if (items < used && !factored_in_lanes(count)) {
      for (index_t item = 0; item < items; ++item) {
        Workspace workspace;
        Group<T> group(call, 1, used, workspace);
        parallel_team(used, [&](Team team) { group.run(item, 1, team); });
      }
      return;
    }
    const index_t together = std::clamp<index_t>(items / used, 1, frames_together(count));
    each_group(items, together, count, used,
               [&](Workspace& workspace) { return Group<T>(call, together, 1, workspace); });
  });
}

}  // namespace subspan
