#include "core/dispatch.h"
#include "core/small_matrix/symmetric_functions.h"
#include "ops/angles/chunks.h"
#include "ops/angles/grassmann_step.h"

namespace subspan {
namespace {

// The k x k part: from the products of P, u and b to the coefficients of the new P and the new buffer.
//   P' = P of_basis + u of_update, buffer' = P buffer_of_basis + u buffer_of_update + b buffer_of_b
// where the last term is absent if b is u.
// Products are of a transposed left operand, hence some matrices beside their transposes.
class Coefficients {
 public:
  Coefficients(index_t k, Workspace& workspace)
      : of_basis(take(k, workspace)),
        of_update(take(k, workspace)),
        buffer_of_basis(take(k, workspace)),
        buffer_of_update(take(k, workspace)),
        buffer_of_b(take(k, workspace)),
        functions_(k, workspace),
        newton_(take(k, workspace)),
        along_u_(take(k, workspace)),
        along_u_transposed_(take(k, workspace)),
        along_b_(take(k, workspace)),
        squares_(take(k, workspace)),
        work_(take(k, workspace)),
        more_(take(k, workspace)) {}

  // PP = P^T P, Pu = P^T u, uu = u^T u; Pb = P^T b and ub = u^T b where b is not u.
  void run(const Square& PP, const Square& Pu, const Square& uu, const Square* Pb, const Square* ub,
           const StepParameters& parameters) {
    const double lr = parameters.lr;
    assign(newton_, PP, -1);
    add_to_diagonal(newton_, 2);
    multiply_into(along_u_, newton_, Pu);
    multiply_into(along_u_transposed_, Pu, newton_);
    assign(squares_, uu, 1);  // of u - P P^T u
    multiply_into(squares_, Pu, along_u_, -1, 1);
    transpose_into(work_, squares_);
    add_scaled(squares_, 1, work_);
    assign(squares_, squares_, 0.5);
    assign(work_, squares_, lr * lr);
    functions_.run(work_);
    // P cos + D sine with D = -lr (u - P along_u)
    assign(of_basis, functions_.cosine, 1);
    multiply_into(of_basis, along_u_transposed_, functions_.sine, lr, 1);
    assign(of_update, functions_.sine, -lr);
    if (parameters.transport) transport(Pu, Pb, ub, lr);
    if (parameters.orthonormalize) orthonormalize(PP, Pu, uu, parameters.transport);
  }

  Square of_basis, of_update, buffer_of_basis, buffer_of_update, buffer_of_b;

 private:
  static Square take(index_t k, Workspace& workspace) { return Square::take(k, workspace); }
  static void assign(const Square& to, const Square& from, double scale) {
    for (index_t i = 0; i < to.elements(); ++i) to.data()[i] = scale * from.data()[i];
  }

  // b - P along_b - D versine H - P sine H with H = D^T b.
  void transport(const Square& Pu, const Square* Pb, const Square* ub, double lr) {
    if (Pb) {
      multiply_into(along_b_, newton_, *Pb);
      assign(work_, *ub, -lr);
      multiply_into(work_, Pu, along_b_, lr, 1);
    } else {
      assign(along_b_, along_u_, 1);
      assign(work_, squares_, -lr);
    }
    multiply_into(buffer_of_update, functions_.versine, work_, lr);
    assign(buffer_of_basis, along_b_, -1);
    multiply_into(buffer_of_basis, along_u_transposed_, buffer_of_update, -1, 1);
    multiply_into(buffer_of_basis, functions_.sine, work_, -1, 1);
    add_to_diagonal(Pb ? buffer_of_b : buffer_of_update, 1);
  }

  void orthonormalize(const Square& PP, const Square& Pu, const Square& uu, bool transported) {
    multiply_into(work_, PP, of_basis);
    multiply_into(squares_, of_basis, work_);
    multiply_into(work_, uu, of_update);
    multiply_into(squares_, of_update, work_, 1, 1);
    transpose_into(more_, Pu);
    multiply_into(work_, more_, of_update);
    multiply_into(more_, of_basis, work_);
    transpose_into(work_, more_);
    add_scaled(squares_, 1, more_);
    add_scaled(squares_, 1, work_);
    cholesky_in_place(squares_);
    transpose_into(work_, squares_);
    solve_right(of_basis, work_);
    solve_right(of_update, work_);
    if (!transported) return;
    for (const Square* part : {&buffer_of_basis, &buffer_of_update, &buffer_of_b}) {
      solve_right(*part, work_);
    }
  }

  RotationFunctions functions_;
  Square newton_, along_u_, along_u_transposed_, along_b_, squares_, work_, more_;
};

template <class T>
class Item {
 public:
  Item(const LongVectors<T>& P, const LongVectors<T>& gradient, const LongVectors<T>* buffer,
       const StepParameters& parameters, int team_size, Workspace& workspace)
      : P_(P),
        gradient_(gradient),
        buffer_(buffer),
        parameters_(parameters),
        transported_(buffer && parameters.transport),
        separate_(transported_ && parameters.nesterov),
        chunks_(P.length()),
        PP_(P.count(), chunks_, workspace),
        Pu_(P.count(), chunks_, workspace),
        uu_(P.count(), chunks_, workspace),
        Pb_(separate_ ? P.count() : 0, chunks_, workspace),
        ub_(separate_ ? P.count() : 0, chunks_, workspace),
        coefficients_(P.count(), workspace),
        next_(P.count(), 2, workspace),
        next_buffer_(transported_ ? P.count() : 0, 3, workspace),
        scratch_(workspace.take<T>(kBuffers * P.buffer_size() * team_size)),
        doubles_(workspace.take<double>(3 * P.buffer_size() * team_size)) {}

  // By every member of the team.
  void run(Team team) {
    chunks_.each_block(team, [&](index_t chunk, index_t first, index_t size) {
      const Sources in = read(first, size, team);
      const index_t k = P_.count();
      const Block<double> P = in_double(in.P, k, size, doubles(team, 0)),
                          u = in_double(in.u, k, size, doubles(team, 1));
      add_dots(P, P, size, true, PP_.part(chunk));
      add_dots(P, u, size, false, Pu_.part(chunk));
      add_dots(u, u, size, true, uu_.part(chunk));
      if (!separate_) return;
      const Block<double> b = in_double(in.b, k, size, doubles(team, 2));
      add_dots(P, b, size, false, Pb_.part(chunk));
      add_dots(u, b, size, false, ub_.part(chunk));
    });
    team.barrier();
    if (team.rank() == 0) set_coefficients();
    team.barrier();
    chunks_.each_block(team, [&](index_t, index_t first, index_t size) { write(first, size, team); });
  }

 private:
  static constexpr int kBuffers = 5;
  struct Sources {
    Block<T> P, u, b;
  };

  void set_coefficients() {
    StepParameters parameters = parameters_;
    parameters.transport = transported_;
    const Square& PP = PP_.total(true);
    const Square& Pu = Pu_.total(false);
    const Square& uu = uu_.total(true);
    if (separate_) {
      coefficients_.run(PP, Pu, uu, &Pb_.total(false), &ub_.total(false), parameters);
    } else {
      coefficients_.run(PP, Pu, uu, nullptr, nullptr, parameters);
    }
    next_.append(coefficients_.of_basis);
    next_.append(coefficients_.of_update);
    if (!transported_) return;
    next_buffer_.append(coefficients_.buffer_of_basis);
    next_buffer_.append(coefficients_.buffer_of_update);
    if (separate_) next_buffer_.append(coefficients_.buffer_of_b);
  }

  Sources read(index_t first, index_t size, Team team) const {
    const Block<T> P = P_.read(first, size, scratch(team, 0));
    const Block<T> g = gradient_.read(first, size, scratch(team, 1));
    const Block<T> before = buffer_ ? buffer_->read(first, size, scratch(team, 2)) : g;
    const T sign = parameters_.maximize ? T(-1) : T(1), decay = static_cast<T>(parameters_.weight_decay);
    const T momentum = buffer_ ? static_cast<T>(parameters_.momentum) : T(0);
    const T share = buffer_ ? static_cast<T>(1 - parameters_.dampening) : T(1);
    T *b = scratch(team, 1), *u = separate_ || parameters_.nesterov ? scratch(team, 3) : b;
    for (index_t j = 0; j < P_.count(); ++j) {
      const T *p = P[j], *gradient = g[j], *old = before[j];
      T *out = b + j * kBlockLength, *ahead = u + j * kBlockLength;
      for (index_t i = 0; i < round_up(size, kLanes<T>); i += kLanes<T>) {
        const Vec<T> full = load(gradient + i) * sign + load(p + i) * decay;
        const Vec<T> next = momentum == 0 ? full * share : load(old + i) * momentum + full * share;
        store(out + i, next);
        if (u != b) store(ahead + i, full + next * momentum);
      }
    }
    return {P, {u, kBlockLength}, {b, kBlockLength}};
  }

  void write(index_t first, index_t size, Team team) const {
    const Sources in = read(first, size, team);
    const Block<T> sources[] = {in.P, in.u, in.b};
    T* out = scratch(team, 4);
    if (transported_) {
      next_buffer_.run(sources, size, out);
      buffer_->write(first, size, out);
    } else if (buffer_) {
      buffer_->write(first, size, in.b.data);
    }
    next_.run(sources, size, out);
    P_.write(first, size, out);
  }

  T* scratch(Team team, int which) const { return scratch_ + (kBuffers * team.rank() + which) * P_.buffer_size(); }
  double* doubles(Team team, int which) const { return doubles_ + (3 * team.rank() + which) * P_.buffer_size(); }

  LongVectors<T> P_, gradient_;
  const LongVectors<T>* buffer_;
  StepParameters parameters_;
  bool transported_, separate_;
  Chunks chunks_;
  DotSums PP_, Pu_, uu_, Pb_, ub_;
  Coefficients coefficients_;
  Combination<T> next_, next_buffer_;
  T* scratch_;
  double* doubles_;
};

}  // namespace

void grassmann_step_cpu(const TensorView& P, const TensorView& gradient, const TensorView* buffer,
                        const StepParameters& parameters, bool rows, int threads) {
  if (P.numel() == 0) return;
  dispatch_float(P.dtype, "grassmann_step", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const double flops =
        16 * static_cast<double>(P.size(rows ? -2 : -1)) * static_cast<double>(P.size(-1) * P.size(-2));
    run_tall_items(batch_count(P, 2), flops, threads, [&](index_t item, int team_size) {
      Workspace workspace;
      const LongVectors<T> own(buffer ? *buffer : P, item, rows);
      Item<T> one({P, item, rows}, {gradient, item, rows}, buffer ? &own : nullptr, parameters, team_size, workspace);
      parallel_team(team_size, [&](Team team) { one.run(team); });
    });
  });
}

}  // namespace subspan
