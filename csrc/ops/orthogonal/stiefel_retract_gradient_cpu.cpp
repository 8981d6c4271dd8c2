#include "core/dispatch.h"
#include "core/small_matrix/square_solve.h"
#include "ops/angles/chunks.h"
#include "ops/orthogonal/stiefel_generator.h"
#include "ops/orthogonal/stiefel_retract.h"

namespace subspan {
namespace {

// Dot products of the columns of X, V and G; those of G with itself are never asked for.
struct Products {
  const Square &S, &C, &D, &G, &H;  // X^T X, X^T V, V^T V, X^T G, V^T G
};

// A long matrix as X x + P p + G g.
struct Coordinates {
  Square x, p, g;

  Coordinates(index_t rank, Workspace& workspace)
      : x(Square::take(rank, workspace)), p(Square::take(rank, workspace)), g(Square::take(rank, workspace)) {}
};

// The k x k algebra: from the products to the coefficients of d_X and d_V.
class GradientCoefficients {
 public:
  GradientCoefficients(index_t rank, Retraction method, Workspace& workspace)
      : method_(method),
        rank_(rank),
        generator_(rank, workspace),
        E_transposed_(Square::take(rank, workspace)),
        C_transposed_(Square::take(rank, workspace)),
        P_G_(Square::take(rank, workspace)),
        of_X_(rank, workspace),
        of_P_(rank, workspace),
        exponential_(method == Retraction::kExp ? 4 * rank : 0, workspace) {
    for (Square& square : scratch_) square = Square::take(rank, workspace);
    for (Square& square : wide_) square = Square::take(method == Retraction::kExp ? 4 * rank : 2 * rank, workspace);
    for (auto& gradient : gradients_) {
      for (Square& square : gradient) square = Square::take(rank, workspace);
    }
  }

  // Of X, V and G, in this order.
  const Square& of_d_X(int input) const { return gradients_[0][input]; }
  const Square& of_d_V(int input) const { return gradients_[1][input]; }

  void run(const Products& in) {
    generator_.set(in.S, in.C, in.D);
    transpose_into(E_transposed_, generator_.E);
    transpose_into(C_transposed_, in.C);
    copy(in.H, P_G_);
    multiply_into(P_G_, in.C, in.G, -0.5, 1);  // P^T G = V^T G - C^T X^T G / 2
    method_ == Retraction::kCayley ? cayley(in) : exponential(in);
    resolve(in);
  }

 private:
  static void copy(const Square& from, const Square& to) { std::copy_n(from.data(), from.elements(), to.data()); }

  // to = keep * to + scale * left right
  void product(const Square& to, const Square& left, const Square& right, double scale = 1, double keep = 0) const {
    transpose_into(scratch_[7], left);
    multiply_into(to, scratch_[7], right, scale, keep);
  }

  // With Y = O X, O = M^-1 (I + W / 2) and M = I - W / 2, so that O + I = 2 M^-1, let L = M^-T G and T = M^-1 X. The
  // gradient of W is L T^T, and X in Y = O X gets 2 L - G.
  void cayley(const Products& in) {
    const Square &T_x = scratch_[0], &T_p = scratch_[1], &L_x = scratch_[2], &L_p = scratch_[3];
    const auto solve = [&](bool transposed, const Square& upper, double sign, const Square& lower) {
      generator_.write_cayley(in.S, wide_[0]);
      if (transposed) {
        copy(wide_[0], wide_[1]);
        transpose_into(wide_[0], wide_[1]);
      }
      for (index_t i = 0; i < rank_; ++i) {
        for (index_t j = 0; j < rank_; ++j) {
          wide_[1](i, j) = upper(i, j);
          wide_[1](rank_ + i, j) = sign * lower(i, j);
          wide_[1](i, rank_ + j) = wide_[1](rank_ + i, rank_ + j) = 0;
        }
      }
      solve_in_place(wide_[0], wide_[1]);
    };
    solve(false, in.S, -1, E_transposed_);  // T = X + U y / 2, where (I - Z^T U / 2) y = Z^T X
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        T_p(i, j) = wide_[1](i, j) / 2;
        T_x(i, j) = wide_[1](rank_ + i, j) / 2 + (i == j ? 1 : 0);
      }
    }
    solve(true, P_G_, 1, in.G);  // L = G + Z z / 2, where (I - Z^T U / 2)^T z = U^T G
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        L_x(i, j) = wide_[1](i, j) / 2;
        L_p(i, j) = -wide_[1](rank_ + i, j) / 2;
      }
    }
    // The products of T and L with X and P.
    const Square &T_X = of_P_.g, &L_X = scratch_[4], &T_P = scratch_[5], &L_P = scratch_[6];
    multiply_into(T_X, T_x, in.S);
    multiply_into(T_X, T_p, E_transposed_, 1, 1);
    transpose_into(L_X, in.G);
    multiply_into(L_X, L_x, in.S, 1, 1);
    multiply_into(L_X, L_p, E_transposed_, 1, 1);
    multiply_into(T_P, T_x, generator_.E);
    multiply_into(T_P, T_p, generator_.F, 1, 1);
    transpose_into(L_P, P_G_);
    multiply_into(L_P, L_x, generator_.E, 1, 1);
    multiply_into(L_P, L_p, generator_.F, 1, 1);
    // W = P X^T - X P^T: d_P = L T^T X - T L^T X, and d_X = 2 L - G + T L^T P - L T^T P.
    for (const auto& [T_own, L_own, of_P, of_X] :
         {std::tie(T_x, L_x, of_P_.x, of_X_.x), std::tie(T_p, L_p, of_P_.p, of_X_.p)}) {
      product(of_P, L_own, T_X);
      product(of_P, T_own, L_X, -1, 1);
      product(of_X, T_own, L_P);
      product(of_X, L_own, T_P, -1, 1);
      add_scaled(of_X, 2, L_own);
    }
    std::fill_n(of_X_.g.data(), of_X_.g.elements(), 0.0);
    add_scaled(of_X_.g, -1, T_P);
    add_to_diagonal(of_X_.g, 1);
  }

  // Y = U exp(T) [0; I] with T = Z^T U. The adjoint of the derivative of the exponential at T is its derivative at
  // T^T, a block of the exponential of [[T^T, N], [0, T^T]], linear in N, which here is the gradient of exp T: it is
  // brought to length 1, so that it takes no part in how often the exponential is squared.
  void exponential(const Products& in) {
    const double s = generator_.balance();
    const Square &T = wide_[1], &block = wide_[0];
    const index_t twice = 2 * rank_;
    generator_.write_balanced(in.S, s, T);
    double length = 0;
    for (index_t i = 0; i < rank_; ++i) {
      double sums[2] = {};
      for (index_t j = 0; j < rank_; ++j) sums[0] += std::fabs(P_G_(i, j) / s), sums[1] += std::fabs(in.G(i, j));
      length = std::max({length, sums[0], sums[1]});
    }
    if (length == 0) length = 1;
    std::fill_n(block.data(), block.elements(), 0.0);
    for (index_t i = 0; i < twice; ++i) {
      for (index_t j = 0; j < twice; ++j) block(i, j) = block(twice + i, twice + j) = T(j, i);
    }
    for (index_t i = 0; i < rank_; ++i) {
      for (index_t j = 0; j < rank_; ++j) {
        block(i, 3 * rank_ + j) = P_G_(i, j) / s / length;
        block(rank_ + i, 3 * rank_ + j) = in.G(i, j) / length;
      }
    }
    exponential_.run(block);
    const Square& e = exponential_.result;
    const auto of_T = [&](index_t i, index_t j) { return e(i, twice + j) * length; };
    const index_t k = rank_;
    for (index_t i = 0; i < k; ++i) {
      for (index_t j = 0; j < k; ++j) {
        // of U: G e + Z of_T; of Z: U of_T^T; X is s times the first half of Z and the second of U, and so is P.
        of_X_.g(i, j) = e(k + i, k + j);
        of_X_.x(i, j) = s * (of_T(i, k + j) + of_T(j, k + i));
        of_X_.p(i, j) = of_T(j, i) - of_T(k + i, k + j);
        of_P_.g(i, j) = e(k + i, j) / s;
        of_P_.x(i, j) = of_T(i, j) - of_T(k + j, k + i);
        of_P_.p(i, j) = -(of_T(k + i, j) + of_T(k + j, i)) / s;
      }
    }
  }

  // P = V - X C / 2 with C = X^T V: d_V = d_P - X A / 2 and d_X -= (d_P C^T + V A^T) / 2, where A = X^T d_P. Then P
  // itself is written out.
  void resolve(const Products& in) {
    const Square& A = scratch_[0];
    product(A, in.G, of_P_.g);
    multiply_into(A, in.S, of_P_.x, 1, 1);  // S is symmetric
    product(A, generator_.E, of_P_.p, 1, 1);
    for (const auto& [of_P, of_X] :
         {std::tie(of_P_.x, of_X_.x), std::tie(of_P_.p, of_X_.p), std::tie(of_P_.g, of_X_.g)}) {
      product(of_X, of_P, C_transposed_, -0.5, 1);
    }
    add_scaled(of_P_.x, -0.5, A);
    const Square& A_transposed = scratch_[1];
    transpose_into(A_transposed, A);
    for (int which = 0; which < 2; ++which) {
      const Coordinates& from = which == 0 ? of_X_ : of_P_;
      const Square(&to)[3] = gradients_[which];
      copy(from.x, to[0]);
      multiply_into(to[0], C_transposed_, from.p, -0.5, 1);
      copy(from.p, to[1]);
      if (which == 0) add_scaled(to[1], -0.5, A_transposed);
      copy(from.g, to[2]);
    }
  }

  Retraction method_;
  index_t rank_;
  StiefelGenerator generator_;
  Square E_transposed_, C_transposed_, P_G_;
  Coordinates of_X_, of_P_;
  SquareExponential exponential_;
  Square scratch_[8], wide_[2], gradients_[2][3];
};

template <class T>
class Item {
 public:
  Item(const LongVectors<T> (&inputs)[3], const LongVectors<T> (&results)[2], Retraction method, int team_size,
       Workspace& workspace)
      : inputs_{inputs[0], inputs[1], inputs[2]},
        results_{results[0], results[1]},
        chunks_(inputs[0].length()),
        coefficients_(inputs[0].count(), method, workspace),
        combinations_{{inputs[0].count(), 3, workspace}, {inputs[0].count(), 3, workspace}},
        buffers_(workspace.take<T>(4 * inputs[0].buffer_size() * team_size)),
        doubles_(workspace.take<double>(3 * inputs[0].buffer_size() * team_size)) {
    for (int i = 0; i < 5; ++i) sums_.emplace_back(inputs[0].count(), chunks_, workspace);
  }

  // By every member of the team.
  void run(Team team) {
    const index_t count = inputs_[0].count();
    chunks_.each_block(team, [&](index_t chunk, index_t first, index_t size) {
      Block<double> in[3];
      for (int i = 0; i < 3; ++i) {
        in[i] = in_double(inputs_[i].read(first, size, buffer(team, i)), count, size, doubles(team, i));
      }
      add_dots(in[0], in[0], size, true, sums_[0].part(chunk));
      add_dots(in[0], in[1], size, false, sums_[1].part(chunk));
      add_dots(in[1], in[1], size, true, sums_[2].part(chunk));
      add_dots(in[0], in[2], size, false, sums_[3].part(chunk));
      add_dots(in[1], in[2], size, false, sums_[4].part(chunk));
    });
    team.barrier();
    if (team.rank() == 0) set_coefficients();
    team.barrier();
    chunks_.each_block(team, [&](index_t, index_t first, index_t size) {
      Block<T> in[3];
      for (int i = 0; i < 3; ++i) in[i] = inputs_[i].read(first, size, buffer(team, i));
      T* out = buffer(team, 3);
      for (int i = 0; i < 2; ++i) {
        combinations_[i].run(in, size, out);
        results_[i].write(first, size, out);
      }
    });
  }

 private:
  void set_coefficients() {
    const Products products{sums_[0].total(true), sums_[1].total(false), sums_[2].total(true), sums_[3].total(false),
                            sums_[4].total(false)};
    coefficients_.run(products);
    // An entry that is not finite shows in the products, in its own rows and columns; it must reach all.
    double probe = 0;
    for (const Square* square : {&products.S, &products.C, &products.D, &products.G, &products.H}) {
      for (index_t i = 0; i < square->elements(); ++i) probe += square->data()[i] * 0;
    }
    for (int input = 0; input < 3; ++input) {
      for (const Square* square : {&coefficients_.of_d_X(input), &coefficients_.of_d_V(input)}) {
        if (probe != 0) std::fill_n(square->data(), square->elements(), probe);
      }
      combinations_[0].append(coefficients_.of_d_X(input));
      combinations_[1].append(coefficients_.of_d_V(input));
    }
  }

  T* buffer(Team team, int which) const { return buffers_ + (4 * team.rank() + which) * inputs_[0].buffer_size(); }
  double* doubles(Team team, int which) const {
    return doubles_ + (3 * team.rank() + which) * inputs_[0].buffer_size();
  }

  LongVectors<T> inputs_[3], results_[2];
  Chunks chunks_;
  std::vector<DotSums> sums_;
  GradientCoefficients coefficients_;
  Combination<T> combinations_[2];
  T* buffers_;
  double* doubles_;
};

}  // namespace

void stiefel_retract_gradient_cpu(const TensorView& X, const TensorView& V, const TensorView& G, const TensorView& d_X,
                                  const TensorView& d_V, Retraction method, bool rows, int threads) {
  if (d_X.numel() == 0) return;
  dispatch_float(d_X.dtype, "retract", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const double count = static_cast<double>(X.size(rows ? -2 : -1));
    const double algebra = (method == Retraction::kCayley ? 100 : 1500) * count * count * count;
    const double flops = 22 * count * static_cast<double>(X.size(-1) * X.size(-2)) + algebra;
    run_tall_items(batch_count(X, 2), flops, threads, [&](index_t item, int team_size) {
      Workspace workspace;
      const LongVectors<T> inputs[] = {{X, item, rows}, {V, item, rows}, {G, item, rows}};
      const LongVectors<T> results[] = {{d_X, item, rows}, {d_V, item, rows}};
      Item<T> one(inputs, results, method, team_size, workspace);
      parallel_team(team_size, [&](Team team) { one.run(team); });
    });
  });
}

}  // namespace subspan
