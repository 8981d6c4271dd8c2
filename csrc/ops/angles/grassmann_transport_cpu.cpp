#include "core/dispatch.h"
#include "core/small_matrix/symmetric_functions.h"
#include "ops/angles/chunks.h"
#include "ops/angles/grassmann_transport.h"

namespace subspan {
namespace {

template <class T>
class Item {
 public:
  Item(const LongVectors<T>& X, const LongVectors<T>& D, const LongVectors<T>& V, const LongVectors<T>& result,
       int team_size, Workspace& workspace)
      : X_(X),
        D_(D),
        V_(V),
        result_(result),
        chunks_(X.length()),
        gram_(X.count(), chunks_, workspace),
        cross_(X.count(), chunks_, workspace),
        functions_(X.count(), workspace),
        coefficients_(Square::take(X.count(), workspace)),
        moved_(X.count(), 3, workspace),
        buffers_(workspace.take<T>(kBuffers * X.buffer_size() * team_size)),
        doubles_(workspace.take<double>(2 * X.buffer_size() * team_size)) {}

  // By every member of the team.
  void run(Team team) {
    chunks_.each_block(team, [&](index_t chunk, index_t first, index_t size) {
      const Block<T> d = D_.read(first, size, buffer(team, 1));
      const Block<T> v = V_.read(first, size, buffer(team, 2));
      const Square& gram = gram_.part(chunk);
      const Block<double> exact = in_double(d, X_.count(), size, doubles(team, 0));
      add_dots(exact, exact, size, true, gram);
      add_dots(exact, in_double(v, X_.count(), size, doubles(team, 1)), size, false, cross_.part(chunk));
      gram(0, 0) += finite_probe(X_.read(first, size, buffer(team, 0)), X_.count(), size);
      gram(0, 0) += finite_probe(v, V_.count(), size);
    });
    team.barrier();
    if (team.rank() == 0) set_coefficients();
    team.barrier();
    chunks_.each_block(team, [&](index_t, index_t first, index_t size) {
      const Block<T> in[] = {X_.read(first, size, buffer(team, 0)), D_.read(first, size, buffer(team, 1)),
                             V_.read(first, size, buffer(team, 2))};
      T* out = buffer(team, 3);
      moved_.run(in, size, out);
      result_.write(first, size, out);
    });
  }

 private:
  static constexpr int kBuffers = 4;

  void set_coefficients() {
    functions_.run(gram_.total(true));
    const Square& cross = cross_.total(false);
    multiply_into(coefficients_, functions_.sine, cross, -1);
    moved_.append(coefficients_);
    multiply_into(coefficients_, functions_.versine, cross, -1);
    moved_.append(coefficients_);
    std::fill_n(coefficients_.data(), coefficients_.elements(), 0.0);
    add_to_diagonal(coefficients_, 1);
    moved_.append(coefficients_);
  }

  T* buffer(Team team, int which) const { return buffers_ + (kBuffers * team.rank() + which) * X_.buffer_size(); }
  double* doubles(Team team, int which) const { return doubles_ + (2 * team.rank() + which) * X_.buffer_size(); }

  LongVectors<T> X_, D_, V_, result_;
  Chunks chunks_;
  DotSums gram_, cross_;
  RotationFunctions functions_;
  Square coefficients_;
  Combination<T> moved_;
  T* buffers_;
  double* doubles_;
};

}  // namespace

void grassmann_transport_cpu(const TensorView& X, const TensorView& D, const TensorView& V, const TensorView& result,
                             bool rows, int threads) {
  if (result.numel() == 0) return;
  dispatch_float(result.dtype, "grassmann_transport", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const double flops =
        10 * static_cast<double>(X.size(rows ? -2 : -1)) * static_cast<double>(X.size(-1) * X.size(-2));
    run_tall_items(batch_count(X, 2), flops, threads, [&](index_t item, int team_size) {
      Workspace workspace;
      Item<T> one({X, item, rows}, {D, item, rows}, {V, item, rows}, {result, item, rows}, team_size, workspace);
      parallel_team(team_size, [&](Team team) { one.run(team); });
    });
  });
}

}  // namespace subspan
