// Mixed components of x as panels: lane (row, group) of term i and column k is
//   sum_c coefficient(group, i, c) x[row, c * depth + k].
// Rows are transposed first, so that every lane finds its own entry beside those of the others, and a vector of
// mixtures is written where it belongs.
#pragma once
#include "core/pack.h"
#include "ops/phm/factors.h"

namespace subspan {

// Term i of group g and part c: coefficients[g * group_step + c * part_step + i].
template <class T>
struct Mixture {
  const T* coefficients;
  index_t group_step, part_step, groups, parts, terms, depth;
};

template <class T>
class MixedLanes {
 public:
  MixedLanes(const Rows<T>& x, const Mixture<T>& mixture, Workspace& workspace)
      : x_(x),
        m_(mixture),
        coefficients_(workspace.take<T>(m_.terms * m_.parts * kLanes<T>)),
        entries_(workspace.take<T>(m_.parts * kLanes<T> * kLanes<T>)),
        converted_(x.in_place() ? nullptr : workspace.take<T>(kLanes<T> * m_.parts * kChunk)) {}

  // One vector of lanes from `lane` on, of which `lanes` are wanted, counted from the first group of row `first`: the
  // columns k ... k + count. panel(i) is where those of term i go, `width` apart.
  template <class Panel>
  void pack(index_t first, index_t lane, index_t lanes, index_t k, index_t count, index_t width, Panel&& panel) {
    spread(lane % m_.groups);
    for (index_t done = 0; done < count; done += kChunk) {
      const index_t chunk = std::min(kChunk, count - done);
      const T* from[kLanes<T>];
      const index_t part_step = find(first, lane, std::min<index_t>(lanes, kLanes<T>), k + done, chunk, from);
      for (index_t b = 0; b < chunk; b += kLanes<T>) {
        const index_t columns = std::min<index_t>(kLanes<T>, chunk - b);
        transpose(from, part_step, b, columns);
        for (index_t i = 0; i < m_.terms; ++i) mix(i, columns, panel(i) + (done + b) * width, width);
      }
    }
  }

 private:
  static constexpr index_t kChunk = 64;  // columns that are converted at once

  // A coefficient of every lane, for lanes that begin with `group`.
  void spread(index_t group) {
    if (group == group_) return;
    group_ = group;
    T* to = coefficients_;
    for (index_t i = 0; i < m_.terms; ++i) {
      for (index_t c = 0; c < m_.parts; ++c, to += kLanes<T>) {
        const T* from = m_.coefficients + c * m_.part_step + i;
        for (index_t j = 0, g = group; j < kLanes<T>; ++j, g = g + 1 == m_.groups ? 0 : g + 1) {
          to[j] = from[g * m_.group_step];
        }
      }
    }
  }

  // Where columns k ... of the lanes' rows lie; lanes that are not wanted take the last one's. Returns how far apart
  // parts are.
  index_t find(index_t first, index_t lane, index_t lanes, index_t k, index_t count, const T* (&from)[kLanes<T>]) {
    const index_t begin = first + lane / m_.groups, end = first + (lane + lanes - 1) / m_.groups + 1;
    for (index_t row = begin; row < end && converted_; ++row) {
      for (index_t c = 0; c < m_.parts; ++c) {
        x_.read(row, c * m_.depth + k, count, converted_ + ((row - begin) * m_.parts + c) * kChunk);
      }
    }
    for (index_t j = 0; j < kLanes<T>; ++j) {
      const index_t row = first + (lane + std::min(j, lanes - 1)) / m_.groups;
      from[j] = converted_ ? converted_ + (row - begin) * m_.parts * kChunk : x_.read(row, k, count, nullptr);
    }
    return converted_ ? kChunk : m_.depth;
  }

  // entries_[c][b] = columns b ... of part c, a vector of lanes each.
  void transpose(const T* const (&from)[kLanes<T>], index_t part_step, index_t b, index_t columns) {
    for (index_t c = 0; c < m_.parts; ++c) {
      const index_t at = c * part_step + b;
      Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (index_t j = 0; j < kLanes<T>; ++j) {
        square[j] = columns == kLanes<T> ? load(from[j] + at) : load_first(from[j] + at, columns);
      }
      transpose_square<T>(square);
#pragma GCC unroll 16
      for (index_t j = 0; j < kLanes<T>; ++j) store(entries_ + (c * kLanes<T> + j) * kLanes<T>, square[j]);
    }
  }

  void mix(index_t term, index_t columns, T* to, index_t width) const {
    for_terms(m_.parts, [&](index_t first, auto parts) {
      constexpr int count = parts.value;
      const T* of_term = coefficients_ + (term * m_.parts + first) * kLanes<T>;
      const T* entries = entries_ + first * kLanes<T> * kLanes<T>;
      Vec<T> coefficients[count];
#pragma GCC unroll 8
      for (int c = 0; c < count; ++c) coefficients[c] = load(of_term + c * kLanes<T>);
      for (index_t b = 0; b < columns; ++b, entries += kLanes<T>) {
        Vec<T> sum = coefficients[0] * load(entries);
#pragma GCC unroll 8
        for (int c = 1; c < count; ++c) sum += coefficients[c] * load(entries + c * kLanes<T> * kLanes<T>);
        store(to + b * width, first == 0 ? sum : load(to + b * width) + sum);
      }
    });
  }

  const Rows<T>& x_;
  Mixture<T> m_;
  T* coefficients_;  // [term][part][lane]
  T* entries_;       // [part][column][lane]
  T* converted_;     // [row][part][column]; null: x is read where it lies
  index_t group_ = -1;
};

}  // namespace subspan
