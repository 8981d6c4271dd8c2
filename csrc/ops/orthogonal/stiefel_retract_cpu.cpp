#include "core/dispatch.h"
#include "core/small_matrix/square_solve.h"
#include "ops/angles/chunks.h"
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
        first_(Square::take(rank, workspace)),
        second_(Square::take(rank, workspace)),
        third_(Square::take(rank, workspace)),
        block_(Square::take(2 * rank, workspace)),
        right_(Square::take(method == Retraction::kCayley ? 2 * rank : 0, workspace)),
        exponential_(method == Retraction::kExp ? 2 * rank : 0, workspace) {}

  // S = X^T X, C = X^T V, D = V^T V.
  void run(const Square& S, const Square& C, const Square& D) {
    method_ == Retraction::kCayley ? cayley(S, C, D) : exponential(S, C, D);
  }

  Square of_X, of_V;

 private:
  // Y = X + P u + X v, where (u, v) solves (I - Z^T U / 2) (u, v) = Z^T X with U = [P X] and Z = [X -P]:
  //   Z^T U = [[E, S], [-F, -E^T]],  Z^T X = [S; -E^T],  E = X^T P,  F = P^T P.
  void cayley(const Square& S, const Square& C, const Square& D) {
    const Square &E = first_, &F = second_;
    copy(E, C);
    multiply_into(E, S, C, -0.5, 1);  // S is symmetric
    copy(F, D);
    multiply_into(F, C, C, -0.5, 1);  // P^T P = V^T P - C^T X^T P / 2, V^T P = D - C^T C / 2
    multiply_into(F, C, E, -0.5, 1);
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        const double one = i == j ? 1 : 0;
        block_(i, j) = one - E(i, j) / 2;
        block_(i, rank_ + j) = -S(i, j) / 2;
        block_(rank_ + i, j) = F(i, j) / 2;
        block_(rank_ + i, rank_ + j) = one + E(j, i) / 2;
        right_(i, j) = S(i, j);
        right_(rank_ + i, j) = -E(j, i);
      }
    }
    solve_in_place(block_, right_);
    // X + (V - X C / 2) u + X v
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        of_V(i, j) = right_(i, j);
        of_X(i, j) = right_(rank_ + i, j) + (i == j ? 1 : 0);
      }
    }
    transpose_into(first_, C);
    multiply_into(of_X, first_, of_V, -0.5, 1);
  }

  // X e + (V - X C) f for exp([[A, -N^T N / s], [s I, 0]]) = [[e, .], [s f, .]], where s makes both blocks equally
  // large.
  void exponential(const Square& S, const Square& C, const Square& D) {
    const Square &R = first_, &work = second_;
    copy(R, D);
    multiply_into(work, S, C);
    multiply_into(R, C, work, 1, 1);
    multiply_into(R, C, C, -2, 1);  // N^T N = D - 2 C^T C + C^T S C
    const double norm = row_sum_norm(R);
    const double balance = norm > 0 && norm < 1e300 ? std::ldexp(1.0, std::ilogb(std::sqrt(norm))) : 1;
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        block_(i, j) = (C(i, j) - C(j, i)) / 2;
        block_(i, rank_ + j) = -R(i, j) / balance;
        block_(rank_ + i, j) = i == j ? balance : 0;
        block_(rank_ + i, rank_ + j) = 0;
      }
    }
    exponential_.run(block_);
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        of_X(i, j) = exponential_.result(i, j);
        of_V(i, j) = exponential_.result(rank_ + i, j) / balance;
      }
    }
    transpose_into(third_, C);
    multiply_into(of_X, third_, of_V, -1, 1);
  }

  static void copy(const Square& to, const Square& from) { std::copy_n(from.data(), from.elements(), to.data()); }

  Retraction method_;
  index_t rank_;
  Square first_, second_, third_, block_, right_;
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
