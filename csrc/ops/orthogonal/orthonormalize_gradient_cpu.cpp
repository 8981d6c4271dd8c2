#include "core/dispatch.h"
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
    for (Dense** slots : {&triangles_, &products_, &upstream_, &left_, &right_}) {
      *slots = workspace.take<Dense>(together);
      for (index_t f = 0; f < together; ++f) (*slots)[f] = Dense::take(count_, count_, workspace);
    }
  }

  void run(index_t first, index_t together, Team team) {
    for (index_t f = 0; f < together; ++f) {
      if (team.rank() == 0) {
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

  // Members share the blocks that they pack.
  void add_product(index_t item, const Dense& to, Team team) {
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
    const Frame q = Q(item), to(call_.d_A, item, call_.rows);
    const Dense &block = blocks_[2 * team.rank()], &other = blocks_[2 * team.rank() + 1];
    index_t turn = 0;
    each_block(call_.length, block_, [&](index_t first, index_t rows) {
      if (turn++ % team.size() != team.rank()) return;
      q.pack(first, rows, block);
      if (call_.d_Q && !(call_.polar && call_.length == count_)) {
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
    parallel_for((items + together - 1) / together, used, [&](index_t index) {
      Workspace workspace;
      const index_t first = index * together, present = std::min(together, items - first);
      Group<T>(call, present, 1, workspace).run(first, present, Team());
    });
  });
}

}  // namespace subspan
