// Orthonormalisation of frames so small that several lie side by side in SIMD lanes: Gram and Schmidt's process in
// float64.
#pragma once
#include "core/check_view.h"
#include "core/parallel.h"
#include "core/small_matrix/interleave.h"
#include "ops/orthogonal/frame.h"

namespace subspan {

template <class T>
struct FrameCall {
  TensorView A, result;  // result is Q
  T* Q;
  T* triangle;
  std::int32_t* info;
  index_t items, length, count;
  bool polar, rows;

  Frame A_frame(index_t item) const { return {A, item, rows}; }
  Frame Q_frame(index_t item) const { return {result, item, rows}; }
};

inline bool tiny_frames(index_t length, index_t count) { return length * count <= 64 && length <= 16; }

namespace detail {

// Half of the lanes of a vector, or all of them, in float64.
inline Vec<double> widen(const Vec<float>& v, int part) {
  return load_double(reinterpret_cast<const float*>(&v) + part * kLanes<double>);
}
inline Vec<double> widen(const Vec<double>& v, int) { return v; }
inline void narrow(Vec<double> from, int part, Vec<float>& to) {
  store_as(reinterpret_cast<float*>(&to) + part * kLanes<double>, from, kLanes<double>);
}
inline void narrow(Vec<double> from, int, Vec<double>& to) { to = from; }

// q (entry (r, c) at q[r * count + c]) becomes orthonormal, R (upper) its triangle. Gives the lanes in which a column
// all but lies in the span of those before it, or is too long or short for its square; their results are of no use.
// One pass loses the condition number times a rounding of float64, which two do not.
template <int passes>
[[gnu::always_inline]] inline Mask<double> gram_schmidt_interleaved(Vec<double>* q, Vec<double>* R, int length,
                                                                    int count) {
  constexpr double kDependent = 1e-16;  // of squares
  Mask<double> good = Vec<double>{} == 0;
#pragma GCC unroll 4
  for (int j = 0; j < count; ++j) {
    Vec<double> whole{};
#pragma GCC unroll 4
    for (int r = 0; r < length; ++r) whole += q[r * count + j] * q[r * count + j];
    Vec<double> square = whole;
#pragma GCC unroll 4
    for (int pass = 0; pass < passes && j > 0; ++pass) {
#pragma GCC unroll 4
      for (int i = 0; i < j; ++i) {
        Vec<double> along{};
#pragma GCC unroll 4
        for (int r = 0; r < length; ++r) along += q[r * count + i] * q[r * count + j];
#pragma GCC unroll 4
        for (int r = 0; r < length; ++r) q[r * count + j] -= along * q[r * count + i];
        R[i * count + j] = pass == 0 ? along : R[i * count + j] + along;
      }
      square = Vec<double>{};
#pragma GCC unroll 4
      for (int r = 0; r < length; ++r) square += q[r * count + j] * q[r * count + j];
    }
    good &= (square > kDependent * whole) & (whole < 1e280) & (whole > 1e-280);
    const Vec<double> reciprocal = inverse_square_root(square);
    R[j * count + j] = square * reciprocal;
#pragma GCC unroll 4
    for (int r = 0; r < length; ++r) q[r * count + j] *= reciprocal;
  }
  return !good;
}

// to[e] = entry e of every lane's matrix, from packed items. A whole vector is read where that does not leave the
// array.
template <class T>
inline void take_lanes(const T* items, const T* end, index_t entries, const LaneGroup<T>& group, Vec<T>* to) {
  constexpr index_t lanes = kLanes<T>;
  for (index_t e = 0; e < entries; e += lanes) {
    const index_t count = std::min(lanes, entries - e);
    Vec<T> square[lanes];
#pragma GCC unroll 16
    for (index_t lane = 0; lane < lanes; ++lane) {
      const T* in = items + group.item(lane) * entries + e;
      square[lane] = end - in >= lanes ? load(in) : load_partial(in, count);
    }
    transpose_square<T>(square);
    for (index_t i = 0; i < count; ++i) to[e + i] = square[i];
  }
}

// The inverse, to packed items. Of items no longer than a vector each is written as one, and what follows it once more
// after that, except at the end of the group.
template <class T>
inline void give_lanes(const Vec<T>* from, index_t entries, const LaneGroup<T>& group, T* out) {
  constexpr index_t lanes = kLanes<T>;
  const T* end = out + (group.first + group.present) * entries;
  for (index_t e = 0; e < entries; e += lanes) {
    const index_t count = std::min(lanes, entries - e);
    Vec<T> square[lanes];
    for (index_t i = 0; i < lanes; ++i) square[i] = from[e + std::min(i, count - 1)];
    transpose_square<T>(square);
    for (index_t lane = 0; lane < group.present; ++lane) {
      T* to = out + (group.first + lane) * entries + e;
      if (count == lanes || (entries < lanes && end - to >= lanes)) {
        store(to, square[lane]);
      } else {
        std::memcpy(to, &square[lane], static_cast<std::size_t>(count) * sizeof(T));
      }
    }
  }
}

// One group, whose matrices are in q; `Length` and `Count` if they are known, else 0. Gives the bad lanes of each part.
template <int Length, int Count, class T>
inline void orthonormalize_lanes(Vec<T>* q, Vec<T>* R, int length, int count, int row_step, int column_step,
                                 Vec<double>* exact, Vec<double>* triangle, Mask<double>* bad) {
  constexpr int passes = sizeof(T) == 4 ? 1 : 2, parts = kLanes<T> / kLanes<double>;
  if constexpr (Length > 0) {
    for (int part = 0; part < parts; ++part) {
      Vec<double> x[Length * Count], r[Count * Count] = {};
#pragma GCC unroll 16
      for (int e = 0; e < Length * Count; ++e) x[e] = widen(q[e / Count * row_step + e % Count * column_step], part);
      bad[part] = gram_schmidt_interleaved<passes>(x, r, Length, Count);
#pragma GCC unroll 16
      for (int e = 0; e < Length * Count; ++e) narrow(x[e], part, q[e / Count * row_step + e % Count * column_step]);
#pragma GCC unroll 16
      for (int e = 0; R && e < Count * Count; ++e) narrow(r[e], part, R[e]);
    }
    return;
  }
  std::fill_n(triangle, count * count, Vec<double>{});
  for (int part = 0; part < parts; ++part) {
    for (int r = 0; r < length; ++r) {
      for (int c = 0; c < count; ++c) exact[r * count + c] = widen(q[r * row_step + c * column_step], part);
    }
    bad[part] = gram_schmidt_interleaved<passes>(exact, triangle, length, count);
    for (int r = 0; r < length; ++r) {
      for (int c = 0; c < count; ++c) narrow(exact[r * count + c], part, q[r * row_step + c * column_step]);
    }
    for (int e = 0; R && e < count * count; ++e) narrow(triangle[e], part, R[e]);
  }
}

}  // namespace detail

// Q, R and info; by_item(item) does an item that this cannot.
template <class T, class ByItem>
void orthonormalize_tiny(const FrameCall<T>& call, int threads, ByItem&& by_item) {
  constexpr int parts = kLanes<T> / kLanes<double>;
  const index_t entries = call.length * call.count, triangle_entries = call.count * call.count;
  const int length = static_cast<int>(call.length), count = static_cast<int>(call.count);
  const int row_step = call.rows ? 1 : count, column_step = call.rows ? length : 1;
  const bool packed = call.A.dtype == call.result.dtype && is_packed(call.A);
  const T* end = call.A.template ptr<T>() + call.items * entries;
  // Groups are so small that a thread takes several at once.
  constexpr index_t at_once = 8;
  const index_t groups = lane_groups<T>(call.items);
  parallel_for((groups + at_once - 1) / at_once, threads, [&](index_t index) {
    Workspace workspace;
    Vec<T>* q = workspace.take<Vec<T>>(entries);
    Vec<T>* R = call.triangle ? workspace.take<Vec<T>>(triangle_entries) : nullptr;
    Vec<double>* exact = workspace.take<Vec<double>>(entries);
    Vec<double>* triangle = workspace.take<Vec<double>>(triangle_entries);
    for (index_t g = index * at_once; g < std::min(groups, (index + 1) * at_once); ++g) {
      const LaneGroup<T> group(g, call.items);
      if (packed) {
        detail::take_lanes<T>(call.A.template ptr<T>(), end, entries, group, q);
      } else {
        interleave<T>(call.A, group, q, call.rows ? column_step : row_step, call.rows ? row_step : column_step);
      }
      Mask<double> bad[parts];
      if (length == 3 && count == 3) {
        detail::orthonormalize_lanes<3, 3, T>(q, R, 3, 3, row_step, column_step, exact, triangle, bad);
      } else if (length == 4 && count == 4) {
        detail::orthonormalize_lanes<4, 4, T>(q, R, 4, 4, row_step, column_step, exact, triangle, bad);
      } else {
        detail::orthonormalize_lanes<0, 0, T>(q, R, length, count, row_step, column_step, exact, triangle, bad);
      }
      detail::give_lanes<T>(q, entries, group, call.Q);
      if (R) detail::give_lanes<T>(R, triangle_entries, group, call.triangle);
      for (index_t lane = 0; call.info && lane < group.present; ++lane) call.info[group.first + lane] = 0;
      for (int part = 0; part < parts; ++part) {
        if (!any<double>(bad[part])) continue;
        const index_t from = part * kLanes<double>, to = std::min<index_t>(group.present, from + kLanes<double>);
        for (index_t lane = from; lane < to; ++lane) {
          if (bad[part][lane - from]) by_item(group.first + lane);
        }
      }
    }
  });
}

}  // namespace subspan
