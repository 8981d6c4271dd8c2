// What an adapter does between the products that meet whole rows of x: small mixtures, with rows of x as lanes.
#pragma once
#include "ops/phm/activation.h"
#include "ops/phm/adapter_rows.h"
#include "ops/phm/phm_adapter.h"

namespace subspan {

// One map's factors of one batch item, copied: D = sum_i A_i (x) U_i V_i.
template <class T>
struct AdapterMap {
  index_t terms, p, q, rank;
  Skinny<T> U;  // row (i, j) is column j of U_i
  Skinny<T> V;  // row (i, j) is row j of V_i
  const T* A;   // (terms, p, q)
  const T* bias;

  index_t width() const { return terms * rank; }
  index_t outputs() const { return p * U.length; }
  index_t inputs() const { return q * V.length; }

  AdapterMap(const AdapterFactors& map, index_t item, Workspace& workspace)
      : terms(map.A.size(-3)), p(map.A.size(-2)), q(map.A.size(-1)), rank(map.U.size(-1)) {
    T* rule = workspace.take<T>(terms * p * q);
    copy(map.A, item, q, 1, p * q, rule);
    A = rule;
    U = skinny(map.U.size(-2), workspace), V = skinny(map.V.size(-1), workspace);
    copy(map.U, item, 1, U.step, rank * U.step, const_cast<T*>(U.data));
    copy(map.V, item, V.step, 1, rank * V.step, const_cast<T*>(V.data));
    bias = nullptr;
    if (!map.bias) return;
    T* added = workspace.take<T>(outputs());
    const T* from = static_cast<const T*>(batch_item(*map.bias, 1, item));
    for (index_t o = 0; o < outputs(); ++o) added[o] = from[o * map.bias->step(-1)];
    bias = added;
  }

 private:
  Skinny<T> skinny(index_t length, Workspace& workspace) const {
    const index_t step = round_up(length, kLanes<T>) + kLanes<T>;  // no power of two apart
    T* data = workspace.take<T>(width() * step);
    std::fill_n(data, width() * step, T(0));
    return {data, width(), length, step};
  }

  static void copy(const TensorView& view, index_t item, index_t row, index_t column, index_t matrix, T* to) {
    const T* from = static_cast<const T*>(batch_item(view, 3, item));
    for (index_t i = 0; i < view.size(-3); ++i) {
      for (index_t r = 0; r < view.size(-2); ++r) {
        for (index_t c = 0; c < view.size(-1); ++c) {
          to[i * matrix + r * row + c * column] = from[i * view.step(-3) + r * view.step(-2) + c * view.step(-1)];
        }
      }
    }
  }
};

// mixed[(p, t)] = sum_q A[i, p, q] products[(q, t)] for t = (i, j).
template <class T>
void mix_products(const AdapterMap<T>& map, const Vec<T>* products, Vec<T>* mixed) {
  const index_t width = map.width();
  for (index_t r = 0; r < map.p; ++r) {
    for (index_t t = 0; t < width; ++t) {
      const T* weights = map.A + (t / map.rank * map.p + r) * map.q;
      Vec<T> total{};
      for (index_t c = 0; c < map.q; ++c) total += products[c * width + t] * weights[c];
      mixed[r * width + t] = total;
    }
  }
}

// Its transpose.
template <class T>
void mix_back(const AdapterMap<T>& map, const Vec<T>* mixed, Vec<T>* products) {
  const index_t width = map.width();
  for (index_t c = 0; c < map.q; ++c) {
    for (index_t t = 0; t < width; ++t) {
      const T* weights = map.A + t / map.rank * map.p * map.q + c;
      Vec<T> total{};
      for (index_t r = 0; r < map.p; ++r) total += mixed[r * width + t] * weights[r * map.q];
      products[c * width + t] = total;
    }
  }
}

// units[(g, a)] = bias + sum_t factors[t][a] products[(g, t)].
template <class T>
void spread_products(const Vec<T>* products, index_t groups, const Skinny<T>& factors, const T* bias, Vec<T>* units) {
  for (index_t g = 0; g < groups; ++g, products += factors.width) {
    for (index_t a = 0; a < factors.length; ++a) {
      Vec<T> total = bias ? broadcast(bias[g * factors.length + a]) : Vec<T>{};
      for (index_t t = 0; t < factors.width; ++t) total += products[t] * factors.row(t)[a];
      *units++ = total;
    }
  }
}

// products[(g, t)] = sum_a factors[t][a] units[(g, a)].
template <class T>
void gather_units(const Vec<T>* units, index_t groups, const Skinny<T>& factors, Vec<T>* products) {
  for (index_t g = 0; g < groups; ++g, units += factors.length) {
    for (index_t t = 0; t < factors.width; ++t) {
      Vec<T> total{};
      for (index_t a = 0; a < factors.length; ++a) total += units[a] * factors.row(t)[a];
      *products++ = total;
    }
  }
}

// sums[i, p, q] += sum over t of i of d_mixed[(p, t)] products[(q, t)].
template <class T>
void add_rule_gradient(const AdapterMap<T>& map, const Vec<T>* d_mixed, const Vec<T>* products, Vec<T>* sums) {
  const index_t width = map.width();
  for (index_t i = 0; i < map.terms; ++i) {
    for (index_t r = 0; r < map.p; ++r) {
      for (index_t c = 0; c < map.q; ++c, ++sums) {
        Vec<T> total = *sums;
        for (index_t t = i * map.rank; t < (i + 1) * map.rank; ++t) {
          total += d_mixed[r * width + t] * products[c * width + t];
        }
        *sums = total;
      }
    }
  }
}

// sums[t, a] += sum_g units[(g, a)] products[(g, t)].
template <class T>
void add_factor_gradient(const Skinny<T>& factors, index_t groups, const Vec<T>* units, const Vec<T>* products,
                         Vec<T>* sums) {
  for (index_t t = 0; t < factors.width; ++t) {
    for (index_t a = 0; a < factors.length; ++a, ++sums) {
      Vec<T> total = *sums;
      for (index_t g = 0; g < groups; ++g) {
        total += units[g * factors.length + a] * products[g * factors.width + t];
      }
      *sums = total;
    }
  }
}

}  // namespace subspan
