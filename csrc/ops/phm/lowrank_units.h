// What low-rank weights do between the products that meet whole rows of x: small mixtures, with rows of x as lanes.
#pragma once
#include "ops/phm/lowrank_rows.h"
#include "ops/phm/phm_lowrank.h"

namespace subspan {

// One map's factors of one batch item, copied: D = sum_i A_i (x) U_i V_i.
template <class T>
struct LowRankMap {
  index_t terms, p, q, rank;
  Skinny<T> U;  // row (i, j) is column j of U_i
  Skinny<T> V;  // row (i, j) is row j of V_i
  const T* A;   // (terms, p, q)
  const T* bias;

  index_t width() const { return terms * rank; }
  index_t outputs() const { return p * U.length; }
  index_t inputs() const { return q * V.length; }

  LowRankMap(const LowRankFactors& map, index_t item, Workspace& workspace)
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

template <class T>
inline index_t tile_count(index_t rows) {
  return (rows + kLanes<T> - 1) / kLanes<T>;
}

// Tiles of rows whose gradients of factors make one share: a number that may not depend on the threads.
template <class T>
struct Shares {
  index_t count;

  explicit Shares(index_t rows) : tiles_(tile_count<T>(rows)) {
    constexpr index_t least = 128, most = 64;  // rows, shares
    at_once_ = tile_count<T>(std::max(least, (rows + most - 1) / most));
    count = (tiles_ + at_once_ - 1) / at_once_;
  }
  index_t first(index_t share) const { return std::min(tiles_, share * at_once_); }

 private:
  index_t tiles_, at_once_;
};

// Their sums, added up in their order, in memory of the workspace.
template <class T>
const T* sum_shares(const T* shares, index_t count, index_t size, Workspace& workspace) {
  double* sums = workspace.take<double>(size);
  std::fill_n(sums, size, 0.0);
  for (index_t share = 0; share < count; ++share) {
    for (index_t i = 0; i < size; ++i) sums[i] += shares[share * size + i];
  }
  T* total = workspace.take<T>(size);
  for (index_t i = 0; i < size; ++i) total[i] = static_cast<T>(sums[i]);
  return total;
}

// to[i] = the sum of the lanes of sums[i], in their order.
template <class T>
void sum_lanes(const Vec<T>* sums, index_t count, T* to) {
  for (index_t i = 0; i < count; ++i) {
    T total = 0;
    for (index_t lane = 0; lane < kLanes<T>; ++lane) total += sums[i][lane];
    to[i] = total;
  }
}

// Gradients of one map: that of U by rows (i, j) `U_step` apart, that of V likewise.
template <class T>
struct MapGradients {
  const T *A, *U, *V, *bias;
};
template <class T>
void store_gradients(const LowRankMap<T>& map, const MapGradients<T>& from, index_t U_step, index_t V_step,
                     const LowRankGradients& to, index_t item) {
  const index_t coefficients = map.terms * map.p * map.q, l = map.U.length, k = map.V.length;
  if (to.A) std::copy_n(from.A, coefficients, to.A->ptr<T>() + item * coefficients);
  for (index_t t = 0; to.U && t < map.width(); ++t) {
    T* column = to.U->ptr<T>() + item * map.width() * l + t / map.rank * l * map.rank + t % map.rank;
    for (index_t a = 0; a < l; ++a) column[a * map.rank] = from.U[t * U_step + a];
  }
  for (index_t t = 0; to.V && t < map.width(); ++t) {
    std::copy_n(from.V + t * V_step, k, to.V->ptr<T>() + (item * map.width() + t) * k);
  }
  if (to.bias) std::copy_n(from.bias, map.outputs(), to.bias->ptr<T>() + item * map.outputs());
}

// A small matrix by its strides.
template <class T>
struct Weights {
  const T* data;
  index_t rows, columns, row_step, column_step;
};

// to[j] = start[j] + sum_i weights[j, i] from[i], `from_step` and `to_step` apart; start may be absent.
template <class T>
void multiply_lanes(const Weights<T>& weights, const Vec<T>* from, index_t from_step, const T* start, Vec<T>* to,
                    index_t to_step) {
  for_terms(weights.rows, [&](index_t first, auto part) {
    constexpr int count = part.value;
    Vec<T> sums[count];
#pragma GCC unroll 8
    for (int j = 0; j < count; ++j) sums[j] = start ? broadcast(start[first + j]) : Vec<T>{};
    const T* column = weights.data + first * weights.row_step;
    for (index_t i = 0; i < weights.columns; ++i, column += weights.column_step) {
      const Vec<T> in = from[i * from_step];
#pragma GCC unroll 8
      for (int j = 0; j < count; ++j) sums[j] += in * column[j * weights.row_step];
    }
#pragma GCC unroll 8
    for (int j = 0; j < count; ++j) to[(first + j) * to_step] = sums[j];
  });
}

// mixed[(p, t)] = sum_q A[i, p, q] products[(q, t)] for t = (i, j).
template <class T>
void mix_products(const LowRankMap<T>& map, const Vec<T>* products, Vec<T>* mixed) {
  const index_t width = map.width();
  for (index_t t = 0; t < width; ++t) {
    const Weights<T> rule{map.A + t / map.rank * map.p * map.q, map.p, map.q, map.q, 1};
    multiply_lanes<T>(rule, products + t, width, nullptr, mixed + t, width);
  }
}

// Its transpose.
template <class T>
void mix_back(const LowRankMap<T>& map, const Vec<T>* mixed, Vec<T>* products) {
  const index_t width = map.width();
  for (index_t t = 0; t < width; ++t) {
    const Weights<T> rule{map.A + t / map.rank * map.p * map.q, map.q, map.p, 1, map.q};
    multiply_lanes<T>(rule, mixed + t, width, nullptr, products + t, width);
  }
}

// units[(g, a)] = bias + sum_t factors[t][a] products[(g, t)].
template <class T>
void spread_products(const Vec<T>* products, index_t groups, const Skinny<T>& factors, const T* bias, Vec<T>* units) {
  const index_t length = factors.length;
  const Weights<T> columns{factors.data, length, factors.width, 1, factors.step};
  for (index_t g = 0; g < groups; ++g) {
    multiply_lanes<T>(columns, products + g * factors.width, 1, bias ? bias + g * length : nullptr, units + g * length,
                      1);
  }
}

// products[(g, t)] = sum_a factors[t][a] units[(g, a)].
template <class T>
void gather_units(const Vec<T>* units, index_t groups, const Skinny<T>& factors, Vec<T>* products) {
  const Weights<T> rows{factors.data, factors.width, factors.length, factors.step, 1};
  for (index_t g = 0; g < groups; ++g) {
    multiply_lanes<T>(rows, units + g * factors.length, 1, nullptr, products + g * factors.width, 1);
  }
}

// sums[i, p, q] += sum over t of i of d_mixed[(p, t)] products[(q, t)].
template <class T>
void add_rule_gradient(const LowRankMap<T>& map, const Vec<T>* d_mixed, const Vec<T>* products, Vec<T>* sums) {
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

// units[feature] = that feature of the rows.
template <class T>
void read_units(const RowTile<T>& tile, index_t features, Vec<T>* units) {
  constexpr index_t lanes = kLanes<T>;
  for (index_t f = 0; f < features; f += lanes) {
    const index_t present = std::min(lanes, features - f);
    Vec<T> square[lanes];
#pragma GCC unroll 16
    for (index_t r = 0; r < lanes; ++r) {
      square[r] = load_first(tile.at[r] + f, present);
      if (tile.ahead != 0) __builtin_prefetch(tile.at[r] + f + tile.ahead, 0, 2);
    }
    transpose_square<T>(square);
    std::copy_n(square, present, units + f);
  }
}

// Its inverse.
template <class T>
void write_units(const Vec<T>* units, const RowsOf<T>& to) {
  constexpr index_t lanes = kLanes<T>;
  for (index_t f = 0; f < to.length; f += lanes) {
    const index_t present = std::min(lanes, to.length - f);
    Vec<T> square[lanes] = {};
    std::copy_n(units + f, present, square);
    transpose_square<T>(square);
    for (index_t r = 0; r < to.count; ++r) {
      __builtin_prefetch(to.at[r] + f + write_ahead(to), 1, 2);
      store_first(to.at[r] + f, square[r], present);
    }
  }
}

// One end of a map: rows of x, in groups that meet V, or rows of y and dy, which meet U. Products of a row with every
// factor are sums over lanes, and short groups leave vectors nearly empty: where that costs more than transposing the
// rows, their features become units, with rows as lanes. By instructions, for each of the `width` factors of a group:
// length / 2 and 3.5 for each lane; against 0.56 length, and 4 length for the group's transposition.
template <class T>
class MapEnd {
 public:
  MapEnd(index_t groups, const Skinny<T>& factors, Workspace& workspace)
      : groups_(groups),
        factors_(factors),
        short_(2 * factors.length <= kLanes<T>),
        dots_by_units_(factors.length * (64 + factors.width) < 56 * kLanes<T> * factors.width),
        tile_(groups * factors.length, workspace),
        units_(short_ || dots_by_units_ ? workspace.take<Vec<T>>(groups * factors.length) : nullptr) {}

  void read(const Rows<T>& rows, index_t first, index_t count) {
    tile_.read(rows, first, count), count_ = count;
    if (units_) read_units(tile_, features(), units_);
  }

  // products[(g, t)] = <factors[t], group g>.
  void dot(Vec<T>* products) const {
    if (dots_by_units_) {
      gather_units(units_, groups_, factors_, products);
    } else {
      dot_groups(tile_, groups_, factors_, products);
    }
  }

  // Rows of bias + sum_t products[(g, t)] factors[t]. What was read is lost.
  void expand(const Vec<T>* products, const T* bias, T* to, index_t first, index_t count) {
    const RowsOf<T> rows(to, first, count, features());
    if (short_) {
      spread_products(products, groups_, factors_, bias, units_);
      write_units(units_, rows);
    } else {
      expand_groups<T>(products, groups_, factors_, bias, nullptr, rows);
    }
  }

  // The gradient of the factors is laid out as they are, in `sums`; short groups keep one of every lane until the end.
  void begin_gradient(T* sums, Workspace& workspace) {
    sums_ = sums;
    if (!short_) return;
    by_lane_ = workspace.take<Vec<T>>(factors_.width * factors_.length);
    std::fill_n(by_lane_, factors_.width * factors_.length, Vec<T>{});
  }
  void add_gradient(const Vec<T>* products) {
    if (short_) {
      add_factor_gradient(factors_, groups_, units_, products, by_lane_);
    } else {
      accumulate_groups(tile_, groups_, factors_, products, count_, sums_);
    }
  }
  void end_gradient() {
    for (index_t t = 0; short_ && t < factors_.width; ++t) {
      sum_lanes(by_lane_ + t * factors_.length, factors_.length, sums_ + t * factors_.step);
    }
  }

  void add_rows(T* sums) const { accumulate_rows(tile_, features(), count_, sums); }

 private:
  index_t features() const { return groups_ * factors_.length; }

  index_t groups_;
  Skinny<T> factors_;
  bool short_, dots_by_units_;
  RowTile<T> tile_;
  Vec<T>* units_;
  index_t count_ = 0;
  T* sums_ = nullptr;
  Vec<T>* by_lane_ = nullptr;
};

}  // namespace subspan
