#include "core/dispatch.h"
#include "core/small_matrix/symmetric_functions.h"
#include "ops/angles/chunks.h"
#include "ops/angles/grassmann_exp.h"

namespace subspan {
namespace {

template <class T>
class Item {
 public:
  Item(const LongVectors<T>& X, const LongVectors<T>& D, const LongVectors<T>& result, bool project, int team_size,
       Workspace& workspace)
      : X_(X),
        D_(D),
        result_(result),
        project_(project),
        chunks_(X.length()),
        cross_(project ? X.count() : 0, chunks_, workspace),
        gram_(X.count(), chunks_, workspace),
        functions_(X.count(), workspace),
        projection_(X.count(), 2, workspace),
        geodesic_(X.count(), 2, workspace),
        buffers_(workspace.take<T>(3 * X.buffer_size() * team_size)),
        doubles_(workspace.take<double>(2 * X.buffer_size() * team_size)) {}

  // By every member of the team.
  void run(Team team) {
    if (project_) {
      chunks_.each_block(team, [&](index_t chunk, index_t first, index_t size) {
        const Block<T> x = X_.read(first, size, buffer(team, 0)), d = D_.read(first, size, buffer(team, 1));
        add_dots(in_double(x, X_.count(), size, doubles(team, 0)), in_double(d, X_.count(), size, doubles(team, 1)),
                 size, false, cross_.part(chunk));
      });
      team.barrier();
      if (team.rank() == 0) set_projection();
      team.barrier();
      combine(projection_, D_, team);
      team.barrier();
    }
    const LongVectors<T>& tangent = project_ ? result_ : D_;
    chunks_.each_block(team, [&](index_t chunk, index_t first, index_t size) {
      const Block<T> block = tangent.read(first, size, buffer(team, 1));
      const Square& gram = gram_.part(chunk);
      const Block<double> exact = in_double(block, X_.count(), size, doubles(team, 0));
      add_dots(exact, exact, size, true, gram);
      gram(0, 0) += finite_probe(X_.read(first, size, buffer(team, 0)), X_.count(), size);
    });
    team.barrier();
    if (team.rank() == 0) {
      functions_.run(gram_.total(true));
      geodesic_.append(functions_.cosine);
      geodesic_.append(functions_.sine);
    }
    team.barrier();
    combine(geodesic_, tangent, team);
  }

 private:
  // D - X (X^T D), into the result.
  void set_projection() {
    const Square& cross = cross_.total(false);
    for (index_t i = 0; i < cross.elements(); ++i) cross.data()[i] = -cross.data()[i];
    projection_.append(cross);
    std::fill_n(cross.data(), cross.elements(), 0.0);
    add_to_diagonal(cross, 1);
    projection_.append(cross);
  }

  void combine(const Combination<T>& combination, const LongVectors<T>& second, Team team) const {
    chunks_.each_block(team, [&](index_t, index_t first, index_t size) {
      const Block<T> in[] = {X_.read(first, size, buffer(team, 0)), second.read(first, size, buffer(team, 1))};
      T* out = buffer(team, 2);
      combination.run(in, size, out);
      result_.write(first, size, out);
    });
  }

  T* buffer(Team team, int which) const { return buffers_ + (3 * team.rank() + which) * X_.buffer_size(); }
  double* doubles(Team team, int which) const { return doubles_ + (2 * team.rank() + which) * X_.buffer_size(); }

  LongVectors<T> X_, D_, result_;
  bool project_;
  Chunks chunks_;
  DotSums cross_, gram_;
  RotationFunctions functions_;
  Combination<T> projection_, geodesic_;
  T* buffers_;
  double* doubles_;
};

}  // namespace

void grassmann_exp_cpu(const TensorView& X, const TensorView& D, const TensorView& result, bool project, bool rows,
                       int threads) {
  if (result.numel() == 0) return;
  dispatch_float(result.dtype, "grassmann_exp", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const double count = static_cast<double>(X.size(rows ? -2 : -1));
    const double flops = (project ? 10 : 6) * count * static_cast<double>(X.size(-1) * X.size(-2));
    run_tall_items(batch_count(X, 2), flops, threads, [&](index_t item, int team_size) {
      Workspace workspace;
      Item<T> one({X, item, rows}, {D, item, rows}, {result, item, rows}, project, team_size, workspace);
      parallel_team(team_size, [&](Team team) { one.run(team); });
    });
  });
}

}  // namespace subspan
