// Orthonormalisation of frames so small that several lie side by side in SIMD lanes: Gram and Schmidt's process in
// float64.
#pragma once
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
  return load_as_double(reinterpret_cast<const float*>(&v) + part * kLanes<double>);
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
inline Mask<double> gram_schmidt_interleaved(Vec<double>* q, Vec<double>* R, index_t length, index_t count) {
  constexpr double kDependent = 1e-16;  // of squares
  Mask<double> good = Vec<double>{} == 0;
  for (index_t j = 0; j < count; ++j) {
    Vec<double> whole{};
    for (index_t r = 0; r < length; ++r) whole += q[r * count + j] * q[r * count + j];
    Vec<double> square = whole;
    for (index_t i = 0; i < j; ++i) R[i * count + j] = Vec<double>{};
    for (int pass = 0; pass < passes && j > 0; ++pass) {
      for (index_t i = 0; i < j; ++i) {
        Vec<double> along{};
        for (index_t r = 0; r < length; ++r) along += q[r * count + i] * q[r * count + j];
        for (index_t r = 0; r < length; ++r) q[r * count + j] -= along * q[r * count + i];
        R[i * count + j] += along;
      }
      square = Vec<double>{};
      for (index_t r = 0; r < length; ++r) square += q[r * count + j] * q[r * count + j];
    }
    good &= (square > kDependent * whole) & (whole < 1e280) & (whole > 1e-280);
    const Vec<double> reciprocal = inverse_square_root(square);
    R[j * count + j] = square * reciprocal;
    for (index_t r = 0; r < length; ++r) q[r * count + j] *= reciprocal;
  }
  return !good;
}

// out (items, entries), packed: entry e of every lane's matrix is from[e].
template <class T>
inline void give_lanes(const Vec<T>* from, index_t entries, const LaneGroup<T>& group, T* out) {
  constexpr index_t lanes = kLanes<T>;
  for (index_t e = 0; e < entries; e += lanes) {
    const index_t count = std::min(lanes, entries - e);
    Vec<T> square[lanes];
    for (index_t i = 0; i < lanes; ++i) square[i] = i < count ? from[e + i] : Vec<T>{};
    transpose_square<T>(square);
    for (index_t lane = 0; lane < group.present; ++lane) {
      T* to = out + (group.first + lane) * entries + e;
      std::memcpy(to, &square[lane], static_cast<std::size_t>(count) * sizeof(T));
    }
  }
}

}  // namespace detail

// Q, R and info; by_item(item) does an item that this cannot.
template <class T, class ByItem>
void orthonormalize_tiny(const FrameCall<T>& call, int threads, ByItem&& by_item) {
  constexpr int parts = kLanes<T> / kLanes<double>;
  const index_t length = call.length, count = call.count, entries = length * count;
  parallel_for(lane_groups<T>(call.items), threads, [&](index_t index) {
    const LaneGroup<T> group(index, call.items);
    Workspace workspace;
    Vec<T>* q = workspace.take<Vec<T>>(entries);
    Vec<T>* R = workspace.take<Vec<T>>(count * count);
    Vec<double>* exact = workspace.take<Vec<double>>(entries);
    Vec<double>* triangle = workspace.take<Vec<double>>(count * count);
    std::fill_n(triangle, count * count, Vec<double>{});
    const index_t row_step = call.rows ? 1 : count, column_step = call.rows ? length : 1;
    interleave<T>(call.A, group, q, call.rows ? column_step : row_step, call.rows ? row_step : column_step);
    Mask<double> bad[parts];
    for (int part = 0; part < parts; ++part) {
      for (index_t r = 0; r < length; ++r) {
        for (index_t c = 0; c < count; ++c)
          exact[r * count + c] = detail::widen(q[r * row_step + c * column_step], part);
      }
      bad[part] = detail::gram_schmidt_interleaved<sizeof(T) == 4 ? 1 : 2>(exact, triangle, length, count);
      for (index_t r = 0; r < length; ++r) {
        for (index_t c = 0; c < count; ++c)
          detail::narrow(exact[r * count + c], part, q[r * row_step + c * column_step]);
      }
      for (index_t e = 0; e < count * count; ++e) detail::narrow(triangle[e], part, R[e]);
    }
    detail::give_lanes<T>(q, entries, group, call.Q);
    if (call.triangle) detail::give_lanes<T>(R, count * count, group, call.triangle);
    for (index_t lane = 0; call.info && lane < group.present; ++lane) call.info[group.first + lane] = 0;
    for (int part = 0; part < parts; ++part) {
      if (!any<double>(bad[part])) continue;
      for (index_t lane = part * kLanes<double>; lane < std::min<index_t>(group.present, (part + 1) * kLanes<double>);
           ++lane) {
        if (bad[part][lane - part * kLanes<double>]) by_item(group.first + lane);
      }
    }
  });
}

}  // namespace subspan
