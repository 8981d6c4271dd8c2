#include "core/dispatch.h"
#include "ops/orthogonal/householder_items.h"

namespace subspan {
namespace {

// Rows of E - V P for narrow V, of a member of the team; `moves`: rows of -P.
template <class T>
void move_identity(MatrixView V, const T* moves, MatrixView result, Team team) {
  for (index_t row = team.rank() * kLanes<T>; row < V.rows; row += team.size() * kLanes<T>) {
    Vec<T> vectors[kNarrow<T>], sums[kNarrow<T>];
    read_tile<T>(V, row, 0, vectors);
    clear_tile<T>(sums);
    add_tile_product<T>(vectors, moves, sums);
    write_tile<T>(sums, result, row, 0);
    for (index_t i = row; i < std::min(result.columns, row + kLanes<T>); ++i) *result.at<T>(i, i) += 1;
  }
}

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
  std::optional<NarrowProduct<double, T>> narrow;
  if (reflectors.narrow()) narrow.emplace(reflectors.length(), threads, workspace);
  const bool columns_alone = by_columns(in, reflectors);
  const T* moves = nullptr;
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
    if (!columns_alone) reflectors.pack(team);
    if (reflectors.blocks() == 1) {  // together
      const Panels<double> gram = block_factors[0].own_gram(reflectors.count());
      team.barrier();
      if (narrow) {
        narrow->add(columns_alone ? reflectors.given() : reflectors.vectors(0), nullptr, team);
      } else {
        factor.multiply_gram(reflectors, 0, gram, team);
      }
      team.barrier();
      if (narrow && team.rank() == 0) narrow->finish(gram.data, gram.width);
      if (team.rank() == 0) finish_block(factor, gram, 0);
    }
    for (index_t block = team.rank(); block < reflectors.blocks() && reflectors.blocks() > 1; block += team.size()) {
      const Panels<double> gram = factor.own_gram(reflectors.block_size(block));
      factor.multiply_gram(reflectors, block, gram, Team());
      finish_block(factor, gram, block);
    }
    team.barrier();
    Strip<T> strip = strips[static_cast<std::size_t>(team.rank())];
    if (columns_alone) {
      if (team.rank() == 0) {
        Vec<T> vectors[kNarrow<T>];
        read_tile<T>(reflectors.given(), 0, 0, vectors);
        T* products = strip.set_products(in.columns);
        for (index_t j = 0; j < reflectors.count(); ++j) store(products + j * strip.width(), join_pairs<T>(vectors[j]));
        strip.walk(own_factors, transposed, coefficients, in.columns, nullptr, 0);
        moves = strip.moves(own_factors);
      }
      team.barrier();
      return move_identity<T>(reflectors.given(), moves, result, team);
    }
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
