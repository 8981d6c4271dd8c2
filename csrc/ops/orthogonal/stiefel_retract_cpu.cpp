#include "core/dispatch.h"
#include "core/small_matrix/square_solve.h"
#include "ops/angles/chunks.h"
#include "ops/orthogonal/stiefel_generator.h"
#include "ops/orthogonal/stiefel_retract.h"

namespace subspan {
namespace {

// The k x k algebra: from the Gram matrices to the coefficients of X and V.
class Coefficients {
 public:
  Coefficients(index_t rank, Retraction method, Workspace& workspace)
      : of_X(Square::take(rank, workspace)),
        of_V(Square::take(rank, workspace)),
        method_(method),
        rank_(rank),
        generator_(rank, workspace),
        transposed_(Square::take(rank, workspace)),
        block_(Square::take(2 * rank, workspace)),
        right_(Square::take(method == Retraction::kCayley ? 2 * rank : 0, workspace)),
        exponential_(method == Retraction::kExp ? 2 * rank : 0, workspace) {}

  // S = X^T X, C = X^T V, D = V^T V.
  void run(const Square& S, const Square& C, const Square& D) {
    generator_.set(S, C, D);
    method_ == Retraction::kCayley ? cayley(S, C) : exponential(S, C);
  }

  Square of_X, of_V;

 private:
  // X + U y, where (I - Z^T U / 2) y = Z^T X = [S; -E^T].
  void cayley(const Square& S, const Square& C) {
    generator_.write_cayley(S, block_);
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        right_(i, j) = S(i, j);
        right_(rank_ + i, j) = -generator_.E(j, i);
      }
    }
    solve_in_place(block_, right_);
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        of_V(i, j) = right_(i, j);
        of_X(i, j) = right_(rank_ + i, j) + (i == j ? 1 : 0);
      }
    }
    resolve(C);
  }

  // exp(W) X = exp(W) U [0; I] = U exp(Z^T U) [0; I], since W U = U Z^T U.
  void exponential(const Square& S, const Square& C) {
    const double balance = generator_.balance();
    generator_.write_balanced(S, balance, block_);
    exponential_.run(block_);
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        of_V(i, j) = exponential_.result(i, rank_ + j) / balance;
        of_X(i, j) = exponential_.result(rank_ + i, rank_ + j);
      }
    }
    resolve(C);
  }

  // From coefficients of P = V - X C / 2 to those of V.
  void resolve(const Square& C) {
    transpose_into(transposed_, C);
    multiply_into(of_X, transposed_, of_V, -0.5, 1);
  }

  Retraction method_;
  index_t rank_;
  StiefelGenerator generator_;
  Square transposed_, block_, right_;
  SquareExponential exponential_;
};

template <class T>
class Item {
 public:
  Item(const LongVectors<T>& X, const LongVectors<T>& V, const LongVectors<T>& result, Retraction method, int team_size,
       Workspace& workspace)
      : X_(X),
        V_(V),
        result_(result),
        chunks_(X.length()),
        own_(X.count(), chunks_, workspace),
        cross_(X.count(), chunks_, workspace),
        gram_(X.count(), chunks_, workspace),
        coefficients_(X.count(), method, workspace),
        moved_(X.count(), 2, workspace),
        buffers_(workspace.take<T>(3 * X.buffer_size() * team_size)),
        doubles_(workspace.take<double>(2 * X.buffer_size() * team_size)) {}

  // By every member of the team.
  void run(Team team) {
    const index_t count = X_.count();
    chunks_.each_block(team, [&](index_t chunk, index_t first, index_t size) {
      const Block<double> x = in_double(X_.read(first, size, buffer(team, 0)), count, size, doubles(team, 0));
      const Block<double> v = in_double(V_.read(first, size, buffer(team, 1)), count, size, doubles(team, 1));
      add_dots(x, x, size, true, own_.part(chunk));
      add_dots(x, v, size, false, cross_.part(chunk));
      add_dots(v, v, size, true, gram_.part(chunk));
    });
    team.barrier();
    if (team.rank() == 0) {
      const Square &S = own_.total(true), &C = cross_.total(false), &D = gram_.total(true);
      // An entry that is not finite shows in the Gram matrices, in its own rows and columns; it must reach all.
      double probe = 0;
      for (index_t i = 0; i < S.elements(); ++i) probe += (S.data()[i] + C.data()[i] + D.data()[i]) * 0;
      coefficients_.run(S, C, D);
      if (probe != 0) {
        std::fill_n(coefficients_.of_X.data(), coefficients_.of_X.elements(), probe);
        std::fill_n(coefficients_.of_V.data(), coefficients_.of_V.elements(), probe);
      }
      moved_.append(coefficients_.of_X);
      moved_.append(coefficients_.of_V);
    }
    team.barrier();
    chunks_.each_block(team, [&](index_t, index_t first, index_t size) {
      const Block<T> in[] = {X_.read(first, size, buffer(team, 0)), V_.read(first, size, buffer(team, 1))};
      T* out = buffer(team, 2);
      moved_.run(in, size, out);
      result_.write(first, size, out);
    });
  }

 private:
  T* buffer(Team team, int which) const { return buffers_ + (3 * team.rank() + which) * X_.buffer_size(); }
  double* doubles(Team team, int which) const { return doubles_ + (2 * team.rank() + which) * X_.buffer_size(); }

  LongVectors<T> X_, V_, result_;
  Chunks chunks_;
  DotSums own_, cross_, gram_;
  Coefficients coefficients_;
  Combination<T> moved_;
  T* buffers_;
  double* doubles_;
};

}  // namespace

void stiefel_retract_cpu(const TensorView& X, const TensorView& V, const TensorView& result, Retraction method,
                         bool rows, int threads) {
  if (result.numel() == 0) return;
  dispatch_float(result.dtype, "retract", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const double count = static_cast<double>(X.size(rows ? -2 : -1));
    const double algebra = (method == Retraction::kCayley ? 20 : 200) * count * count * count;
    const double flops = 8 * count * static_cast<double>(X.size(-1) * X.size(-2)) + algebra;
    run_tall_items(batch_count(X, 2), flops, threads, [&](index_t item, int team_size) {
      Workspace workspace;
      Item<T> one({X, item, rows}, {V, item, rows}, {result, item, rows}, method, team_size, workspace);
      parallel_team(team_size, [&](Team team) { one.run(team); });
    });
  });
}

}  // namespace subspan
