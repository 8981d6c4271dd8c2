#include "ops/coding_rate/gram_solver.h"
#include "ops/coding_rate/rate_operator.h"

namespace subspan {

void rate_operator_cpu(const TensorView& Z, const TensorView& result, double alpha, int threads) {
  dispatch_float(compute_dtype(Z.dtype), "rate_operator", [&](auto tag) {
    using Out = typename decltype(tag)::type;
    for_each_item(Z, true, threads, [&](index_t item, int team) {
      const GramProblem problem = gram_problem(Z, item, alpha, Side::kFeatures);
      solve_operator(problem, result.ptr<Out>() + item * problem.features * problem.features, team);
    });
  });
}

}  // namespace subspan
