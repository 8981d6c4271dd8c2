// Sums of gathered rows, and their products with one row: what all products with sparse rows are made of.
//   to_d = base_d + sum_e weight_e x_e[d]        dots_e = sum_d x_e[d] y[d]
// Rows are read once for both. Several are read together, so that their reads overlap and the sum stays in a register;
// each sum has one order, whatever is computed beside it and however the entries d are split.
#pragma once
#include "core/batch.h"
#include "core/half_vector.h"
#include "core/pack.h"
#include "core/parallel.h"
#include "core/stream.h"
#include "core/workspace.h"

namespace subspan {

constexpr index_t kChunk = 64;  // rows that are summed up by themselves: few roundings add up

// Rows to be gathered; such of which the entries are apart are brought together first.
template <class Stored>
struct RowTable {
  const Stored* data = nullptr;
  index_t step = 0;
  const Stored* row(index_t i) const { return data + i * step; }
};

template <class T, class Stored>
struct Gathered {
  const Stored* rows[kChunk];
  index_t places[kChunk];
  const T* weights;
  index_t count;
};

// Where the sum goes: base (none: zero) plus the sum; `part` holds `end` entries.
template <class T>
struct SumTarget {
  const T* base;
  T* to;
  T* part;
  bool streams;
};

namespace detail {

template <class T>
inline T sum_of_lanes(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
#pragma GCC unroll 4
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// `R` rows; the sum of those before is in sum.part where there are any, and goes back there unless these are the last.
template <class T, class Stored, int R, bool Sums, bool Dots>
void gather_group(const Stored* const* rows, const T* weights, bool first, bool last, const T* y, index_t begin,
                  index_t end, const SumTarget<T>& sum, T* dots) {
  constexpr index_t lanes = kLanes<T>;
  const Stored* x[R];
  Vec<T> w[R], products[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    x[r] = rows[r];
    products[r] = Vec<T>{};
    if (Sums) w[r] = broadcast(weights[r]);
  }
  const auto add = [&](index_t d, const auto& read, const auto& read_own, const auto& write) {
    Vec<T> total{}, own{};
    if (Sums && !first) total = load(sum.part + d);
    if (Dots) own = read_own(y + d);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<T> entries = read(x[r] + d);
      if (Sums) total += w[r] * entries;
      if (Dots) products[r] += own * entries;
    }
    if (!Sums) return;
    if (!last) return store(sum.part + d, total);
    if (sum.base) total = read_own(sum.base + d) + total;
    write(sum.to + d, total);
  };
  const auto read = [](const Stored* from) { return load_wide(from); };
  const auto read_own = [](const T* from) { return load(from); };
  index_t d = begin;
  if (sum.streams) {
    for (; d + lanes <= end; d += lanes) add(d, read, read_own, [](T* to, Vec<T> v) { stream(to, v); });
  } else {
    for (; d + lanes <= end; d += lanes) add(d, read, read_own, [](T* to, Vec<T> v) { store(to, v); });
  }
  if (d < end) {
    const index_t rest = end - d;
    add(
        d, [rest](const Stored* from) { return load_wide_partial<T>(from, rest); },
        [rest](const T* from) { return load_partial(from, rest); },
        [rest](T* to, Vec<T> v) { store_entries(to, v, rest); });
  }
  if (Dots) {
    for (int r = 0; r < R; ++r) dots[r] = sum_of_lanes<T>(products[r]);
  }
}

}  // namespace detail

// Entries begin ... end - 1 of the sum of one chunk; the products are right where these are all. sum.part is a buffer
// of whole vectors.
template <class T, class Stored, bool Sums, bool Dots>
void gather_chunk(const Gathered<T, Stored>& chunk, const T* y, index_t begin, index_t end, const SumTarget<T>& sum,
                  T* dots) {
  constexpr int most = Sums && Dots ? 4 : 8;
  for (index_t e = 0; e < chunk.count; e += most) {
    const index_t left = chunk.count - e;
    const auto group = [&](auto size) {
      constexpr int R = decltype(size)::value;
      detail::gather_group<T, Stored, R, Sums, Dots>(chunk.rows + e, chunk.weights + e, e == 0, left <= most, y, begin,
                                                     end, sum, dots + e);
    };
    switch (std::min<index_t>(left, most)) {
      case 1: group(std::integral_constant<int, 1>{}); break;
      case 2: group(std::integral_constant<int, 2>{}); break;
      case 3: group(std::integral_constant<int, 3>{}); break;
      case 4: group(std::integral_constant<int, 4>{}); break;
      case 5: group(std::integral_constant<int, std::min(5, most)>{}); break;
      case 6: group(std::integral_constant<int, std::min(6, most)>{}); break;
      case 7: group(std::integral_constant<int, std::min(7, most)>{}); break;
      default: group(std::integral_constant<int, most>{}); break;
    }
  }
}

// The base, or zeros, where no rows are gathered.
template <class T>
void write_base(index_t begin, index_t end, const SumTarget<T>& sum) {
  if (sum.base) {
    if (sum.base != sum.to) std::copy(sum.base + begin, sum.base + end, sum.to + begin);
    return;
  }
  index_t d = begin;
  if (sum.streams) {
    for (; d + kLanes<T> <= end; d += kLanes<T>) stream(sum.to + d, Vec<T>{});
  }
  std::fill(sum.to + d, sum.to + end, T(0));
}

// The rows of an operand in a type that is computed with, or as they are stored where their entries lie together.
template <class T, class Body>
void with_row_table(const TensorView& array, index_t item, int threads, Workspace& workspace, Body&& body) {
  const void* data = batch_item(array, 2, item);
  const index_t rows = array.size(-2), columns = array.size(-1);
  if (array.step(-1) == 1 || columns <= 1) {
    switch (array.dtype) {
      case DType::bf16:
        if constexpr (sizeof(T) == 4)
          return body(RowTable<BFloat16>{static_cast<const BFloat16*>(data), array.step(-2)});
        break;
      case DType::f16:
        if constexpr (sizeof(T) == 4) return body(RowTable<Float16>{static_cast<const Float16*>(data), array.step(-2)});
        break;
      default: return body(RowTable<T>{static_cast<const T*>(data), array.step(-2)});
    }
  }
  T* packed = workspace.take<T>(rows * columns);
  const Rows<T> from(data, array.dtype, array.step(-2), array.step(-1));
  constexpr index_t block = 16;  // rows whose entries, where these are columns in memory, share cache lines
  parallel_for((rows + block - 1) / block, useful_threads(static_cast<double>(rows * columns), threads),
               [&](index_t b) {
                 for (index_t i = b * block; i < std::min(rows, (b + 1) * block); ++i) {
                   const T* row = from.read(i, 0, columns, packed + i * columns);
                   if (row != packed + i * columns) std::copy_n(row, columns, packed + i * columns);
                 }
               });
  body(RowTable<T>{packed, columns});
}

}  // namespace subspan
