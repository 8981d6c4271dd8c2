#include "core/dispatch.h"
#include "ops/phm/adapter_units.h"

namespace subspan {
namespace {

// Rows whose gradients of factors make one share; a number of tiles that may not depend on the threads.
constexpr index_t kShareRows = 128, kMostShares = 64;

double flops_of(const TensorView& x, const AdapterFactors& down, const AdapterFactors& up) {
  const index_t down_width = down.A.size(-3) * down.U.size(-1), up_width = up.A.size(-3) * up.U.size(-1);
  return 2.0 * static_cast<double>(x.size(-2)) *
         static_cast<double>(down_width * (down.inputs() + down.outputs() + down.A.size(-2) * down.A.size(-1)) +
                             up_width * (up.inputs() + up.outputs() + up.A.size(-2) * up.A.size(-1)));
}

// One batch item.
template <class T>
class Adapter {
 public:
  Adapter(const TensorView& x, const AdapterFactors& down, const AdapterFactors& up, const AdapterOptions& options,
          index_t item, Workspace& workspace)
      : down_(down, item, workspace),
        up_(up, item, workspace),
        x_(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1)),
        rows_(x.size(-2)),
        options_(options) {}

  index_t tiles() const { return (rows_ + kLanes<T> - 1) / kLanes<T>; }

  void forward(T* y, int threads) const {
    constexpr index_t at_once = 8;  // tiles in one task
    parallel_for((tiles() + at_once - 1) / at_once, threads, [&](index_t task) {
      Workspace workspace;
      Tile tile(*this, workspace);
      for (index_t t = task * at_once; t < std::min(tiles(), (task + 1) * at_once); ++t) {
        const index_t first = t * kLanes<T>, count = std::min<index_t>(kLanes<T>, rows_ - first);
        tile.forward(first, count);
        T* to[kLanes<T>];
        for (index_t r = 0; r < count; ++r) to[r] = y + (first + r) * up_.outputs();
        expand_groups(reinterpret_cast<const T*>(tile.up_mixed), up_.p, up_.U, up_.bias,
                      options_.residual ? tile.x.at : nullptr, to, count);
      }
    });
  }

  // Tiles in one share.
  index_t share_tiles() const {
    const index_t rows = std::max(kShareRows, (rows_ + kMostShares - 1) / kMostShares);
    return (rows + kLanes<T> - 1) / kLanes<T>;
  }
  index_t shares() const { return (tiles() + share_tiles() - 1) / share_tiles(); }

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

  // dx, and shares of the gradients of all factors; both may be absent.
  void backward(const Rows<T>& dy, T* dx, T* share_of_all, int threads) const {
    const Layout at = layout();
    parallel_for(
        shares(), threads,
        [&](index_t share) {
          Workspace workspace;
          Tile tile(*this, workspace);
          BackwardTile back(*this, workspace);
          Vec<T>* sums = workspace.take<Vec<T>>(at.small);
          std::fill_n(sums, at.small, Vec<T>{});
          T* own = share_of_all ? share_of_all + share * at.total : nullptr;
          if (own) std::fill_n(own, at.total, T(0));
          const index_t end = std::min(tiles(), (share + 1) * share_tiles());
          for (index_t t = share * share_tiles(); t < end; ++t) {
            const index_t first = t * kLanes<T>, count = std::min<index_t>(kLanes<T>, rows_ - first);
            tile.forward(first, count);
            back.run(tile, dy, first, count);
            if (own) back.add_gradients(tile, count, at, sums, own);
            if (!dx) continue;
            T* to[kLanes<T>];
            for (index_t r = 0; r < count; ++r) to[r] = dx + (first + r) * down_.inputs();
            expand_groups<T>(reinterpret_cast<const T*>(back.d_products), down_.q, down_.V, nullptr,
                             options_.residual ? back.dy.at : nullptr, to, count);
          }
          if (!own) return;
          for (index_t i = 0; i < at.small; ++i) {
            T total = 0;
            for (index_t lane = 0; lane < kLanes<T>; ++lane) total += sums[i][lane];
            own[i] = total;
          }
        },
        1);
  }

  // Gradients of factors of their shares, which are added up in their order.
  void finish(const T* shares_of_all, index_t item, const AdapterGradients& d_down,
              const AdapterGradients& d_up) const {
    const Layout at = layout();
    Workspace workspace;
    T* total = workspace.take<T>(at.total);
    for (index_t i = 0; i < at.total; ++i) {
      double sum = 0;
      for (index_t share = 0; share < shares(); ++share) sum += shares_of_all[share * at.total + i];
      total[i] = static_cast<T>(sum);
    }
    store(down_, {total + at.down_A, total + at.down_U, total + at.down_V, total + at.down_bias}, down_.U.length,
          down_.V.step, d_down, item);
    store(up_, {total + at.up_A, total + at.up_U, total + at.up_V, total + at.up_bias}, up_.U.step, up_.V.length, d_up,
          item);
  }

 private:
  // The hidden units of a tile of rows and what they are made of, row by row in the lanes.
  struct Tile {
    Tile(const Adapter& adapter, Workspace& workspace) : own(adapter), x(adapter.down_.inputs(), workspace) {
      const AdapterMap<T>&down = own.down_, &up = own.up_;
      products = workspace.take<Vec<T>>(down.q * down.width());
      mixed = workspace.take<Vec<T>>(down.p * down.width());
      units = workspace.take<Vec<T>>(down.outputs());
      slopes = workspace.take<Vec<T>>(down.outputs());
      up_products = workspace.take<Vec<T>>(up.q * up.width());
      up_mixed = workspace.take<Vec<T>>(up.p * up.width());
    }

    void forward(index_t first, index_t count) {
      const AdapterMap<T>&down = own.down_, &up = own.up_;
      x.read(own.x_, first, count);
      dot_groups(x, down.q, down.V, reinterpret_cast<T*>(products));
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
      const AdapterMap<T>&down = own.down_, &up = own.up_;
      d_up_mixed = workspace.take<Vec<T>>(up.p * up.width());
      d_up_products = workspace.take<Vec<T>>(up.q * up.width());
      d_units = workspace.take<Vec<T>>(down.outputs());
      d_mixed = workspace.take<Vec<T>>(down.p * down.width());
      d_products = workspace.take<Vec<T>>(down.q * down.width());
    }

    void run(const Tile& tile, const Rows<T>& upstream, index_t first, index_t count) {
      const AdapterMap<T>&down = own.down_, &up = own.up_;
      dy.read(upstream, first, count);
      dot_groups(dy, up.p, up.U, reinterpret_cast<T*>(d_up_mixed));
      mix_back(up, d_up_mixed, d_up_products);
      spread_products<T>(d_up_products, up.q, up.V, nullptr, d_units);
      for (index_t i = 0; i < down.outputs(); ++i) d_units[i] *= tile.slopes[i];
      gather_units(d_units, down.p, down.U, d_mixed);
      mix_back(down, d_mixed, d_products);
    }

    void add_gradients(const Tile& tile, index_t count, const Layout& at, Vec<T>* sums, T* share) const {
      const AdapterMap<T>&down = own.down_, &up = own.up_;
      add_rule_gradient(down, d_mixed, tile.products, sums + at.down_A);
      add_factor_gradient(down.U, down.p, d_units, tile.mixed, sums + at.down_U);
      for (index_t i = 0; i < down.outputs(); ++i) sums[at.down_bias + i] += d_units[i];
      add_rule_gradient(up, d_up_mixed, tile.up_products, sums + at.up_A);
      add_factor_gradient(up.V, up.q, tile.units, d_up_products, sums + at.up_V);
      accumulate_groups(tile.x, down.q, down.V, reinterpret_cast<const T*>(d_products), count, share + at.down_V);
      accumulate_groups(dy, up.p, up.U, reinterpret_cast<const T*>(tile.up_mixed), count, share + at.up_U);
      T* bias = share + at.up_bias;
      for (index_t r = 0; r < count && up.bias; ++r) {
        for (index_t o = 0; o < up.outputs(); ++o) bias[o] += dy.at[r][o];
      }
    }

    const Adapter& own;
    RowTile<T> dy;
    Vec<T>*d_up_mixed, *d_up_products, *d_units, *d_mixed, *d_products;
  };

  struct Totals {
    const T *A, *U, *V, *bias;
  };
  static void store(const AdapterMap<T>& map, const Totals& totals, index_t U_step, index_t V_step,
                    const AdapterGradients& to, index_t item) {
    const index_t coefficients = map.terms * map.p * map.q, l = map.U.length, k = map.V.length;
    std::copy_n(totals.A, coefficients, to.A.ptr<T>() + item * coefficients);
    T *dU = to.U.ptr<T>() + item * map.width() * l, *dV = to.V.ptr<T>() + item * map.width() * k;
    for (index_t t = 0; t < map.width(); ++t) {
      T* column = dU + t / map.rank * l * map.rank + t % map.rank;
      for (index_t a = 0; a < l; ++a) column[a * map.rank] = totals.U[t * U_step + a];
      std::copy_n(totals.V + t * V_step, k, dV + t * k);
    }
    if (to.bias) std::copy_n(totals.bias, map.outputs(), to.bias->ptr<T>() + item * map.outputs());
  }

  AdapterMap<T> down_, up_;
  Rows<T> x_;
  index_t rows_;
  AdapterOptions options_;
};

}  // namespace

void phm_adapter_cpu(const TensorView& x, const AdapterFactors& down, const AdapterFactors& up, const TensorView& y,
                     const AdapterOptions& options, int threads) {
  dispatch_float(down.A.dtype, "phm_adapter", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_of(batch_count(x, 2), flops_of(x, down, up), threads, [&](index_t item, int own) {
      Workspace workspace;
      const Adapter<T> adapter(x, down, up, options, item, workspace);
      adapter.forward(y.ptr<T>() + item * x.size(-2) * up.outputs(), own);
    });
  });
}

void phm_adapter_gradient_cpu(const TensorView& x, const AdapterFactors& down, const AdapterFactors& up,
                              const TensorView& dy, const TensorView* dx, const AdapterGradients* d_down,
                              const AdapterGradients* d_up, const AdapterOptions& options, int threads) {
  dispatch_float(down.A.dtype, "phm_adapter", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_of(batch_count(x, 2), 3 * flops_of(x, down, up), threads, [&](index_t item, int own) {
      Workspace workspace;
      const Adapter<T> adapter(x, down, up, options, item, workspace);
      const Rows<T> upstream(batch_item(dy, 2, item), dy.dtype, dy.step(-2), dy.step(-1));
      T* shares = d_down ? workspace.take<T>(adapter.shares() * adapter.layout().total) : nullptr;
      adapter.backward(upstream, dx ? dx->ptr<T>() + item * x.size(-2) * x.size(-1) : nullptr, shares, own);
      if (d_down) adapter.finish(shares, item, *d_down, *d_up);
    });
  });
}

}  // namespace subspan
