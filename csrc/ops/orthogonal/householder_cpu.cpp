#include "core/dispatch.h"
#include "ops/orthogonal/householder_items.h"

namespace subspan {
namespace {

template <class T>
void apply_item(const HouseholderArrays& in, const MatrixView& result, index_t item, T* coefficients, T* factors,
                const HouseholderParameters& parameters, int threads) {
  Workspace workspace;
  const Reflectors<T> reflectors(MatrixView(in.V, item, parameters.rows), parameters.lapack, workspace);
  // Q^T takes the factors that the gradient of Q takes, and the blocks in that order.
  const bool transposed = parameters.transpose != parameters.right;
  const std::vector<Strip<T>> strips = make_strips(reflectors, in.columns, threads, workspace);
  std::vector<BlockFactor> block_factors;
  for (int i = 0; i < threads; ++i) block_factors.emplace_back(workspace);
  T* own_factors = workspace.take<T>(reflectors.count() * reflectors.factor_step());
  const Rows<double> tau = in.tau ? tau_of(*in.tau, item) : Rows<double>(nullptr, DType::f64, 0, 0);
  const auto finish_block = [&](BlockFactor& factor, const Panels<double>& gram, index_t block) {
    const index_t count = reflectors.block_size(block), first = block * reflectors.width();
    factor.finish(gram, first, count, in.tau ? &tau : nullptr);
    const index_t offset = first * reflectors.factor_step();
    factor.write(transposed, count, reflectors.width(), own_factors + offset);
    if (factors) factor.write(!transposed, count, reflectors.width(), factors + offset);
  };
  parallel_team(threads, [&](Team team) {
    BlockFactor& factor = block_factors[static_cast<std::size_t>(team.rank())];
    reflectors.pack(team);
    if (reflectors.blocks() == 1) {  // together
      const Panels<double> gram = block_factors[0].own_gram(reflectors.count());
      team.barrier();
      factor.multiply_gram(reflectors, 0, gram, team);
      team.barrier();
      if (team.rank() == 0) finish_block(factor, gram, 0);
    }
    for (index_t block = team.rank(); block < reflectors.blocks() && reflectors.blocks() > 1; block += team.size()) {
      const Panels<double> gram = factor.own_gram(reflectors.block_size(block));
      factor.multiply_gram(reflectors, block, gram, Team());
      finish_block(factor, gram, block);
    }
    team.barrier();
    Strip<T> strip = strips[static_cast<std::size_t>(team.rank())];
    for (index_t first = team.rank() * strip.width(); first < in.columns; first += team.size() * strip.width()) {
      const index_t count = std::min(strip.width(), in.columns - first);
      if (in.X) {
        strip.load(MatrixView(*in.X, item, parameters.right), first, count, strip.reads_only(&result));
      } else {
        strip.load_identity(first, count);
      }
      strip.walk(own_factors, transposed, coefficients ? coefficients + first : nullptr, in.columns, &result, first);
    }
  });
}

}  // namespace

void householder_cpu(const HouseholderArrays& in, const TensorView& result, const TensorView* coefficients,
                     const TensorView* factors, const HouseholderParameters& parameters, int threads) {
  dispatch_float(result.dtype, "householder_apply", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t count = in.V.size(parameters.rows ? -2 : -1), length = in.V.size(parameters.rows ? -1 : -2);
    const double flops =
        static_cast<double>(length * count) * static_cast<double>(4 * in.columns + 4 * reflector_block(count));
    const bool swapped = in.X ? parameters.right : parameters.rows;
    each_item(batch_count(in.V, 2), flops, threads, [&](index_t item, int team_size) {
      T* saved = coefficients ? coefficients->ptr<T>() + item * count * in.columns : nullptr;
      T* factor = factors ? factors->ptr<T>() + item * count * (reflector_block(count) + 2) : nullptr;
      apply_item<T>(in, MatrixView(result, item, swapped), item, saved, factor, parameters, team_size);
    });
  });
}

}  // namespace subspan
