#include "core/dispatch.h"
#include "ops/phm/lowrank_units.h"
#include "ops/phm/phm_adapter.h"

namespace subspan {
namespace {

// One batch item.
template <class T>
class Adapter {
 public:
  Adapter(const TensorView& x, const LowRankFactors& down, const LowRankFactors& up, const AdapterOptions& options,
          index_t item, Workspace& workspace)
      : down_(down, item, workspace),
        up_(up, item, workspace),
        x_(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1)),
        rows_(x.size(-2)),
        options_(options) {}

  void forward(T* y, int threads) const {
    constexpr index_t at_once = 8;  // tiles in one task
    const index_t tiles = tile_count<T>(rows_);
    parallel_for((tiles + at_once - 1) / at_once, threads, [&](index_t task) {
      Workspace workspace;
      Tile tile(*this, workspace);
      for (index_t t = task * at_once; t < std::min(tiles, (task + 1) * at_once); ++t) {
        const index_t first = t * kLanes<T>, count = std::min<index_t>(kLanes<T>, rows_ - first);
        tile.forward(first, count);
        expand_groups(tile.up_mixed, up_.p, up_.U, up_.bias, options_.residual ? tile.x.at : nullptr,
                      RowsOf<T>(y, first, count, up_.outputs()));
      }
    });
  }

  // Where each gradient starts in a share.
  struct Layout {
    index_t down_A, down_U, down_bias, up_A, up_V, small;  // the first ones are sums over lanes
    index_t down_V, up_U, up_bias, total;
  };
  Layout layout() const {
    Layout at{};
    at.down_U = down_.terms * down_.p * down_.q;
    at.down_bias = at.down_U + down_.width() * down_.U.length;
    at.up_A = at.down_bias + down_.outputs();
    at.up_V = at.up_A + up_.terms * up_.p * up_.q;
    at.small = at.up_V + up_.width() * up_.V.length;
    at.down_V = round_up(at.small, kLanes<T>);
    at.up_U = at.down_V + down_.width() * down_.V.step;
    at.up_bias = at.up_U + up_.width() * up_.U.step;
    at.total = at.up_bias + round_up(up_.outputs(), kLanes<T>);
    return at;
  }

  // dx, and the gradients of all factors; both may be absent.
  void backward(const Rows<T>& dy, T* dx, const LowRankGradients* d_down, const LowRankGradients* d_up, index_t item,
                int threads) const {
    const Layout at = layout();
    const Shares<T> plan(rows_);
    Workspace workspace;
    T* shares = d_down ? workspace.take<T>(plan.count * at.total) : nullptr;
    parallel_for(
        plan.count, threads,
        [&](index_t share) {
          Workspace own_memory;
          Tile tile(*this, own_memory);
          BackwardTile back(*this, own_memory);
          Vec<T>* sums = own_memory.take<Vec<T>>(at.small);
          std::fill_n(sums, at.small, Vec<T>{});
          T* own = shares ? shares + share * at.total : nullptr;
          if (own) std::fill_n(own, at.total, T(0));
          for (index_t t = plan.first(share); t < plan.first(share + 1); ++t) {
            const index_t first = t * kLanes<T>, count = std::min<index_t>(kLanes<T>, rows_ - first);
            tile.forward(first, count);
            back.run(tile, dy, first, count);
            if (own) back.add_gradients(tile, count, at, sums, own);
            if (!dx) continue;
            expand_groups<T>(back.d_products, down_.q, down_.V, nullptr, options_.residual ? back.dy.at : nullptr,
                             RowsOf<T>(dx, first, count, down_.inputs()));
          }
          if (own) sum_lanes(sums, at.small, own);
        },
        1);
    if (!d_down) return;
    const T* total = sum_shares(shares, plan.count, at.total, workspace);
    store_gradients(down_, {total + at.down_A, total + at.down_U, total + at.down_V, total + at.down_bias},
                    down_.U.length, down_.V.step, *d_down, item);
    store_gradients(up_, {total + at.up_A, total + at.up_U, total + at.up_V, total + at.up_bias}, up_.U.step,
                    up_.V.length, *d_up, item);
  }

 private:
  // The hidden units of a tile of rows and what they are made of, row by row in the lanes.
  struct Tile {
    Tile(const Adapter& adapter, Workspace& workspace) : own(adapter), x(adapter.down_.inputs(), workspace) {
      const LowRankMap<T>&down = own.down_, &up = own.up_;
      products = workspace.take<Vec<T>>(down.q * down.width());
      mixed = workspace.take<Vec<T>>(down.p * down.width());
      units = workspace.take<Vec<T>>(down.outputs());
      slopes = workspace.take<Vec<T>>(down.outputs());
      up_products = workspace.take<Vec<T>>(up.q * up.width());
      up_mixed = workspace.take<Vec<T>>(up.p * up.width());
    }

    void forward(index_t first, index_t count) {
      const LowRankMap<T>&down = own.down_, &up = own.up_;
      x.read(own.x_, first, count);
      dot_groups(x, down.q, down.V, products);
      mix_products(down, products, mixed);
      spread_products(mixed, down.p, down.U, down.bias, units);
      for (index_t i = 0; i < down.outputs(); ++i) {
        const auto point = activate<T>(own.options_.activation, units[i]);
        units[i] = point.value, slopes[i] = point.slope;
      }
      gather_units(units, up.q, up.V, up_products);
      mix_products(up, up_products, up_mixed);
    }

    const Adapter& own;
    RowTile<T> x;
    Vec<T>*products, *mixed, *units, *slopes, *up_products, *up_mixed;
  };

  // Their gradients.
  struct BackwardTile {
    BackwardTile(const Adapter& adapter, Workspace& workspace) : own(adapter), dy(adapter.up_.outputs(), workspace) {
      const LowRankMap<T>&down = own.down_, &up = own.up_;
      d_up_mixed = workspace.take<Vec<T>>(up.p * up.width());
      d_up_products = workspace.take<Vec<T>>(up.q * up.width());
      d_units = workspace.take<Vec<T>>(down.outputs());
      d_mixed = workspace.take<Vec<T>>(down.p * down.width());
      d_products = workspace.take<Vec<T>>(down.q * down.width());
    }

    void run(const Tile& tile, const Rows<T>& upstream, index_t first, index_t count) {
      const LowRankMap<T>&down = own.down_, &up = own.up_;
      dy.read(upstream, first, count);
      dot_groups(dy, up.p, up.U, d_up_mixed);
      mix_back(up, d_up_mixed, d_up_products);
      spread_products<T>(d_up_products, up.q, up.V, nullptr, d_units);
      for (index_t i = 0; i < down.outputs(); ++i) d_units[i] *= tile.slopes[i];
      gather_units(d_units, down.p, down.U, d_mixed);
      mix_back(down, d_mixed, d_products);
    }

    void add_gradients(const Tile& tile, index_t count, const Layout& at, Vec<T>* sums, T* share) const {
      const LowRankMap<T>&down = own.down_, &up = own.up_;
      add_rule_gradient(down, d_mixed, tile.products, sums + at.down_A);
      add_factor_gradient(down.U, down.p, d_units, tile.mixed, sums + at.down_U);
      for (index_t i = 0; i < down.outputs(); ++i) sums[at.down_bias + i] += d_units[i];
      add_rule_gradient(up, d_up_mixed, tile.up_products, sums + at.up_A);
      add_factor_gradient(up.V, up.q, tile.units, d_up_products, sums + at.up_V);
      accumulate_groups(tile.x, down.q, down.V, d_products, count, share + at.down_V);
      accumulate_groups(dy, up.p, up.U, tile.up_mixed, count, share + at.up_U);
      if (up.bias) accumulate_rows(dy, up.outputs(), count, share + at.up_bias);
    }

    const Adapter& own;
    RowTile<T> dy;
    Vec<T>*d_up_mixed, *d_up_products, *d_units, *d_mixed, *d_products;
  };

  LowRankMap<T> down_, up_;
  Rows<T> x_;
  index_t rows_;
  AdapterOptions options_;
};

}  // namespace

void phm_adapter_cpu(const TensorView& x, const LowRankFactors& down, const LowRankFactors& up, const TensorView& y,
                     const AdapterOptions& options, int threads) {
  dispatch_float(down.A.dtype, "phm_adapter", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_of(batch_count(x, 2), down.flops(x.size(-2)) + up.flops(x.size(-2)), threads, [&](index_t item, int own) {
      Workspace workspace;
      const Adapter<T> adapter(x, down, up, options, item, workspace);
      adapter.forward(y.ptr<T>() + item * x.size(-2) * up.outputs(), own);
    });
  });
}

void phm_adapter_gradient_cpu(const TensorView& x, const LowRankFactors& down, const LowRankFactors& up,
                              const TensorView& dy, const TensorView* dx, const LowRankGradients* d_down,
                              const LowRankGradients* d_up, const AdapterOptions& options, int threads) {
  dispatch_float(down.A.dtype, "phm_adapter", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_of(batch_count(x, 2), 3 * (down.flops(x.size(-2)) + up.flops(x.size(-2))), threads,
                [&](index_t item, int own) {
                  Workspace workspace;
                  const Adapter<T> adapter(x, down, up, options, item, workspace);
                  const Rows<T> upstream(batch_item(dy, 2, item), dy.dtype, dy.step(-2), dy.step(-1));
                  adapter.backward(upstream, dx ? dx->ptr<T>() + item * x.size(-2) * x.size(-1) : nullptr, d_down, d_up,
                                   item, own);
                });
  });
}

}  // namespace subspan
