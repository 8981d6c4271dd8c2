// The three products of low-rank weights that meet whole rows of x, for as many rows as a vector has lanes. Their other
// operand is skinny: `width` rows of factors. Between them the rows are lanes.
#pragma once
#include "core/pack.h"
#include "ops/phm/factors.h"

namespace subspan {

// `count` <= kLanes rows of an array, at `at[r]`; of packed scratch memory where they cannot be read in place. Rows
// beyond the last one are zero. Rows of the next tile are asked for while these are multiplied: `ahead` entries on, or
// 0.
template <class T>
class RowTile {
 public:
  RowTile(index_t length, Workspace& workspace) : length_(length) {
    scratch_ = workspace.take<T>(kLanes<T> * length);
    zeros_ = workspace.take<T>(length);
    std::fill_n(zeros_, length, T(0));
  }
  void read(const Rows<T>& rows, index_t first, index_t count) {
    for (index_t r = 0; r < kLanes<T>; ++r) {
      at[r] = r < count ? rows.read(first + r, 0, length_, scratch_ + r * length_) : zeros_;
    }
    ahead = rows.in_place() && count == kLanes<T> ? kLanes<T> * (at[1] - at[0]) : 0;
  }

  const T* at[kLanes<T>];
  index_t ahead;

 private:
  index_t length_;
  T *scratch_, *zeros_;
};

// Rows of a packed array that are written.
template <class T>
struct RowsOf {
  RowsOf(T* data, index_t first, index_t count, index_t length) : count(count), length(length) {
    for (index_t r = 0; r < count; ++r) at[r] = data + (first + r) * length;
  }

  T* at[kLanes<T>];
  index_t count, length;
};

// Rows of factors, padded with zeros to whole vectors.
template <class T>
struct Skinny {
  const T* data;
  index_t width, length, step;

  const T* row(index_t t) const { return data + t * step; }
};

namespace detail {

template <class T>
constexpr int kRowsAtOnce = std::min(4, kLanes<T>);  // of x at once
constexpr int kWidthAtOnce = 4;                      // rows of factors at once, at most

template <int Width, class T>
[[gnu::always_inline]] inline void dots_part(const T* const* rows, index_t offset, index_t ahead,
                                             const Skinny<T>& factors, index_t t0, T* to) {
  Vec<T> sums[round_up(Width * kRowsAtOnce<T>, kLanes<T>)] = {};
  const auto step = [&](index_t b, auto&& read) {
    Vec<T> row[kRowsAtOnce<T>];
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce<T>; ++r) {
      row[r] = read(rows[r] + offset + b);
      if (ahead != 0) __builtin_prefetch(rows[r] + offset + b + ahead, 0, 2);
    }
#pragma GCC unroll 4
    for (int t = 0; t < Width; ++t) {
      const Vec<T> factor = load(factors.row(t0 + t) + b);
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAtOnce<T>; ++r) sums[t * kRowsAtOnce<T> + r] += factor * row[r];
    }
  };
  index_t b = 0;
  for (; b + kLanes<T> <= factors.length; b += kLanes<T>) step(b, [](const T* from) { return load(from); });
  if (b < factors.length) {
    step(b, [&](const T* from) { return load_first(from, factors.length - b); });
  }
  constexpr int count = Width * kRowsAtOnce<T>;
  T totals[count + kLanes<T>];
#pragma GCC unroll 8
  for (int i = 0; i < count; i += kLanes<T>) store(totals + i, lane_sums<T>(sums + i));
  for (int t = 0; t < Width; ++t) std::copy_n(totals + t * kRowsAtOnce<T>, kRowsAtOnce<T>, to + t * kLanes<T>);
}

// Vectors of 64 bytes come with 32 registers: twice the accumulators.
template <class T>
constexpr int kDoubled = sizeof(Vec<T>) == 64 ? 2 : 1;
template <class T>
constexpr int kRowsExpanded = std::min(4 * kDoubled<T>, kLanes<T>);

// Calls body(first, integral_constant<int, count>) for parts of the width.
template <class Body>
[[gnu::always_inline]] inline void for_width(index_t width, Body&& body) {
  for (index_t first = 0; first < width; first += kWidthAtOnce) {
    switch (std::min<index_t>(width - first, kWidthAtOnce)) {
      case 1: body(first, std::integral_constant<int, 1>{}); break;
      case 2: body(first, std::integral_constant<int, 2>{}); break;
      case 3: body(first, std::integral_constant<int, 3>{}); break;
      default: body(first, std::integral_constant<int, 4>{}); break;
    }
  }
}

template <class T, class Body>
[[gnu::always_inline]] inline void for_more_width(index_t width, Body&& body) {
  if constexpr (kDoubled<T> == 2) {
    for_terms(width, body);
  } else {
    for_width(width, body);
  }
}

template <int Vectors, class T>
[[gnu::always_inline]] inline void expand_part(const T* products, const Skinny<T>& factors, index_t b, index_t lanes,
                                               const T* bias, const T* const* base, T* const* to, index_t offset,
                                               index_t count, index_t ahead) {
  Vec<T> sums[kRowsExpanded<T>][Vectors];
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    const index_t at = b + v * kLanes<T>;
    const Vec<T> added = bias ? load_first(bias + offset + at, lanes) : Vec<T>{};
#pragma GCC unroll 8
    for (int r = 0; r < kRowsExpanded<T>; ++r) {
      sums[r][v] = base && r < count ? load_first(base[r] + offset + at, lanes) + added : added;
    }
  }
  for (index_t t = 0; t < factors.width; ++t) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      const Vec<T> factor = load(factors.row(t) + b + v * kLanes<T>);
#pragma GCC unroll 8
      for (int r = 0; r < kRowsExpanded<T>; ++r) sums[r][v] += factor * products[t * kLanes<T> + r];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowsExpanded<T>; ++r) {
    if (r >= count) break;
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      T* target = to[r] + offset + b + v * kLanes<T>;
      __builtin_prefetch(target + ahead, 1, 2);  // memory to be written comes no faster than memory to be read
      store_first(target, sums[r][v], lanes);
    }
  }
}

template <int Vectors, int Width, class T>
[[gnu::always_inline]] inline void accumulate_part(const RowTile<T>& tile, index_t groups, const Skinny<T>& factors,
                                                   const T* products, index_t b, index_t present, index_t count,
                                                   T* sums) {
  Vec<T> total[Width][Vectors];
#pragma GCC unroll 8
  for (int t = 0; t < Width; ++t) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) total[t][v] = load(sums + t * factors.step + b + v * kLanes<T>);
  }
  for (index_t g = 0; g < groups; ++g, products += factors.width * kLanes<T>) {
    for (index_t r = 0; r < count; ++r) {
      Vec<T> row[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        row[v] = load_first(tile.at[r] + g * factors.length + b + v * kLanes<T>, present);
      }
#pragma GCC unroll 8
      for (int t = 0; t < Width; ++t) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) total[t][v] += row[v] * products[t * kLanes<T> + r];
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < Width; ++t) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store(sums + t * factors.step + b + v * kLanes<T>, total[t][v]);
  }
}

}  // namespace detail

// products[(g, t)][row] = <factors[t], group g of the row>.
template <class T>
void dot_groups(const RowTile<T>& tile, index_t groups, const Skinny<T>& factors, Vec<T>* products) {
  T* entries = reinterpret_cast<T*>(products);
  for (index_t g = 0; g < groups; ++g) {
    for (index_t r = 0; r < kLanes<T>; r += detail::kRowsAtOnce<T>) {
      detail::for_width(factors.width, [&](index_t t, auto width) {
        detail::dots_part<width.value>(tile.at + r, g * factors.length, t == 0 ? tile.ahead : 0, factors, t,
                                       entries + (g * factors.width + t) * kLanes<T> + r);
      });
    }
  }
}

// Where lines to be written are asked for: a few rows on, but never nearer than memory answers.
template <class T>
index_t write_ahead(const RowsOf<T>& to) {
  constexpr index_t least = 2048;  // bytes
  return std::max<index_t>(detail::kRowsExpanded<T> * to.length, least / sizeof(T));
}

// Group g of to[row] = base's + bias' + sum_t products[(g, t)][row] factors[t]; the first two may be absent.
template <class T>
void expand_groups(const Vec<T>* products, index_t groups, const Skinny<T>& factors, const T* bias,
                   const T* const* base, const RowsOf<T>& to) {
  constexpr index_t lanes = kLanes<T>;
  const index_t ahead = write_ahead(to);
  for (index_t r = 0; r < to.count; r += detail::kRowsExpanded<T>) {
    const T* const* from = base ? base + r : nullptr;
    for (index_t g = 0; g < groups; ++g) {
      const T* in = reinterpret_cast<const T*>(products + g * factors.width) + r;
      const index_t offset = g * factors.length;
      index_t b = 0;
      for (; b + 2 * lanes <= factors.length; b += 2 * lanes) {
        detail::expand_part<2>(in, factors, b, lanes, bias, from, to.at + r, offset, to.count - r, ahead);
      }
      for (; b < factors.length; b += lanes) {
        detail::expand_part<1>(in, factors, b, std::min(lanes, factors.length - b), bias, from, to.at + r, offset,
                               to.count - r, ahead);
      }
    }
  }
}

// sums[t] += sum over rows and groups of products[(g, t)][row] times group g of the row; sums are laid out as factors.
template <class T>
void accumulate_groups(const RowTile<T>& tile, index_t groups, const Skinny<T>& factors, const Vec<T>* products,
                       index_t count, T* sums) {
  constexpr index_t lanes = kLanes<T>;
  // Columns outside, the width inside: a column of all rows stays in the cache.
  const auto columns = [&](index_t b, index_t present, auto vectors) {
    detail::for_more_width<T>(factors.width, [&](index_t t, auto width) {
      detail::accumulate_part<vectors.value, width.value>(
          tile, groups, factors, reinterpret_cast<const T*>(products + t), b, present, count, sums + t * factors.step);
    });
  };
  index_t b = 0;
  for (; b + 2 * lanes <= factors.length; b += 2 * lanes) columns(b, lanes, std::integral_constant<int, 2>{});
  for (; b < factors.length; b += lanes) {
    columns(b, std::min(lanes, factors.length - b), std::integral_constant<int, 1>{});
  }
}

// sums += the rows; whole vectors are written.
template <class T>
void accumulate_rows(const RowTile<T>& tile, index_t length, index_t count, T* sums) {
  for (index_t b = 0; b < length; b += kLanes<T>) {
    const index_t present = std::min<index_t>(kLanes<T>, length - b);
    Vec<T> total = load(sums + b);
    for (index_t r = 0; r < count; ++r) total += load_first(tile.at[r] + b, present);
    store(sums + b, total);
  }
}

}  // namespace subspan
