#include "core/dispatch.h"
#include "ops/phm/lowrank_units.h"

namespace subspan {
namespace {

// One batch item.
template <class T>
class LowRank {
 public:
  LowRank(const TensorView& x, const LowRankFactors& factors, index_t item, Workspace& workspace)
      : map_(factors, item, workspace),
        x_(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1)),
        rows_(x.size(-2)) {}

  void forward(T* y, int threads) const {
    constexpr index_t at_once = 8;  // tiles in one task
    const index_t tiles = tile_count<T>(rows_);
    parallel_for((tiles + at_once - 1) / at_once, threads, [&](index_t task) {
      Workspace workspace;
      MapEnd<T> x(map_.q, map_.V, workspace), out(map_.p, map_.U, workspace);
      Vec<T>* products = workspace.take<Vec<T>>(map_.q * map_.width());
      Vec<T>* mixed = workspace.take<Vec<T>>(map_.p * map_.width());
      for (index_t t = task * at_once; t < std::min(tiles, (task + 1) * at_once); ++t) {
        const index_t first = t * kLanes<T>, count = std::min<index_t>(kLanes<T>, rows_ - first);
        x.read(x_, first, count);
        x.dot(products);
        mix_products(map_, products, mixed);
        out.expand(mixed, map_.bias, y, first, count);
      }
    });
  }

  // Where each gradient starts in a share.
  struct Layout {
    index_t V, U, bias, total;  // before them that of A, as sums over lanes
  };
  Layout layout() const {
    Layout at{};
    at.V = round_up(map_.terms * map_.p * map_.q, kLanes<T>);
    at.U = at.V + map_.width() * map_.V.step;
    at.bias = at.U + map_.width() * map_.U.step;
    at.total = at.bias + round_up(map_.outputs(), kLanes<T>);
    return at;
  }

  void backward(const Rows<T>& dy, T* dx, const LowRankGradients& to, index_t item, int threads) const {
    const Layout at = layout();
    const Shares<T> plan(rows_);
    const bool wants_factors = to.A || to.U || to.V || to.bias;
    Workspace workspace;
    T* shares = wants_factors ? workspace.take<T>(plan.count * at.total) : nullptr;
    parallel_for(
        plan.count, threads,
        [&](index_t share) {
          Workspace own_memory;
          Tile tile(map_, own_memory);
          T* own = wants_factors ? shares + share * at.total : nullptr;
          const index_t coefficients = map_.terms * map_.p * map_.q;
          Vec<T>* of_rule = own_memory.take<Vec<T>>(coefficients);
          std::fill_n(of_rule, coefficients, Vec<T>{});
          if (own) std::fill_n(own, at.total, T(0));
          if (to.U) tile.dy.begin_gradient(own + at.U, own_memory);
          if (to.V) tile.x.begin_gradient(own + at.V, own_memory);
          for (index_t t = plan.first(share); t < plan.first(share + 1); ++t) {
            const index_t first = t * kLanes<T>, count = std::min<index_t>(kLanes<T>, rows_ - first);
            tile.read(x_, dy, first, count, to.A || to.U, dx || to.V);
            if (to.A) add_rule_gradient(map_, tile.d_mixed, tile.products, of_rule);
            if (to.U) {
              mix_products(map_, tile.products, tile.mixed);
              tile.dy.add_gradient(tile.mixed);
            }
            if (to.V) tile.x.add_gradient(tile.d_products);
            if (to.bias) tile.dy.add_rows(own + at.bias);
            if (dx) tile.x.expand(tile.d_products, nullptr, dx, first, count);
          }
          if (to.A) sum_lanes(of_rule, coefficients, own);
          if (to.U) tile.dy.end_gradient();
          if (to.V) tile.x.end_gradient();
        },
        1);
    if (!wants_factors) return;
    const T* total = sum_shares(shares, plan.count, at.total, workspace);
    store_gradients(map_, {total, total + at.U, total + at.V, total + at.bias}, map_.U.step, map_.V.step, to, item);
  }

 private:
  // Rows of x and dy, and what they make of the factors, row by row in the lanes.
  struct Tile {
    Tile(const LowRankMap<T>& map, Workspace& workspace)
        : map(map), x(map.q, map.V, workspace), dy(map.p, map.U, workspace) {
      products = workspace.take<Vec<T>>(map.q * map.width());
      mixed = workspace.take<Vec<T>>(map.p * map.width());
      d_mixed = workspace.take<Vec<T>>(map.p * map.width());
      d_products = workspace.take<Vec<T>>(map.q * map.width());
    }

    void read(const Rows<T>& from, const Rows<T>& upstream, index_t first, index_t count, bool forward, bool back) {
      x.read(from, first, count);
      dy.read(upstream, first, count);
      if (forward) x.dot(products);
      dy.dot(d_mixed);
      if (back) mix_back(map, d_mixed, d_products);
    }

    const LowRankMap<T>& map;
    MapEnd<T> x, dy;
    Vec<T>*products, *mixed, *d_mixed, *d_products;
  };

  LowRankMap<T> map_;
  Rows<T> x_;
  index_t rows_;
};

}  // namespace

void phm_lowrank_cpu(const TensorView& x, const LowRankFactors& map, const TensorView& y, int threads) {
  dispatch_float(map.A.dtype, "phm_linear_lowrank", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_of(batch_count(x, 2), map.flops(x.size(-2)), threads, [&](index_t item, int own) {
      Workspace workspace;
      const LowRank<T> product(x, map, item, workspace);
      product.forward(y.ptr<T>() + item * x.size(-2) * map.outputs(), own);
    });
  });
}

void phm_lowrank_gradient_cpu(const TensorView& x, const LowRankFactors& map, const TensorView& dy,
                              const TensorView* dx, const LowRankGradients& to, int threads) {
  dispatch_float(map.A.dtype, "phm_linear_lowrank_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_of(batch_count(x, 2), 3 * map.flops(x.size(-2)), threads, [&](index_t item, int own) {
      Workspace workspace;
      const LowRank<T> product(x, map, item, workspace);
      const Rows<T> upstream(batch_item(dy, 2, item), dy.dtype, dy.step(-2), dy.step(-1));
      product.backward(upstream, dx ? dx->ptr<T>() + item * x.size(-2) * x.size(-1) : nullptr, to, item, own);
    });
  });
}

}  // namespace subspan
