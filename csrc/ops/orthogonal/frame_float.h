// Products of frames in float32, read and written where they lie if they lie as rows, with sums over blocks of rows in
// float64: twice as fast as products in float64, and as accurate as float32 where frames are well conditioned.
#pragma once
#include "ops/orthogonal/frame_factor.h"

namespace subspan {

// Rows of float32 at data + r * step.
struct FloatRows {
  float* data = nullptr;
  index_t step = 0;
  float* row(index_t r) const { return data + r * step; }
};

// Whether rows are whole vectors of float32, and so many that products in float32 are worth it.
template <class T>
inline bool multiplied_in_float(index_t count) {
  return sizeof(T) == 4 && count > kMostInLanes && count % kLanes<float> == 0;
}

// The rows of a frame where they lie, if they lie as rows in memory.
inline bool has_float_rows(const Frame& frame) { return frame.dtype() == DType::f32 && frame.column_step() == 1; }
inline FloatRows rows_of(const Frame& frame, const FloatRows& otherwise) {
  return has_float_rows(frame) ? FloatRows{static_cast<float*>(frame.data()), frame.row_step()} : otherwise;
}
// Otherwise a place for a copy,
inline FloatRows take_float_rows(const Frame& frame, Workspace& workspace) {
  if (has_float_rows(frame)) return {};
  return {workspace.take<float>(frame.length() * frame.count()), frame.count()};
}
// which this fills (`block`: of frame_block rows)
inline void read_float_rows(const Frame& frame, const Dense& block, const FloatRows& to) {
  if (has_float_rows(frame)) return;
  each_block(frame.length(), frame_block(frame.length(), frame.count()), [&](index_t first, index_t rows) {
    frame.pack(first, rows, block);
    for (index_t r = 0; r < rows; ++r) {
      for (index_t c = 0; c < frame.count(); c += kLanes<double>)
        detail::store_as(to.row(first + r) + c, load(block.row(r) + c));
    }
  });
}
// and this empties, rows [first, end).
inline void write_float_rows(const FloatRows& from, index_t first, index_t end, const Frame& frame) {
  if (has_float_rows(frame)) return;
  constexpr index_t lanes = kLanes<float>;
  float* out = static_cast<float*>(frame.data());
  for (index_t r = first; r < end; r += lanes) {
    const index_t present = std::min(lanes, end - r);
    for (index_t c = 0; c < frame.count(); c += lanes) {
      Vec<float> square[lanes];
      for (index_t i = 0; i < lanes; ++i) square[i] = load(from.row(r + std::min(i, present - 1)) + c);
      transpose_square<float>(square);
      for (index_t i = 0; i < lanes; ++i) {
        float* to = out + (c + i) * frame.column_step() + r * frame.row_step();
        for (index_t j = 0; j < present; ++j) to[j * frame.row_step()] = square[i][j];
      }
    }
  }
}
// Rows in whole tiles: the others are left to the products in float64, which copy them.
inline index_t whole_tiles(index_t length) { return length / kTileRows * kTileRows; }

namespace detail {
inline void add_as_double(double* to, Vec<float> sums) {
  const float* halves = reinterpret_cast<const float*>(&sums);
#pragma GCC unroll 2
  for (int part = 0; part < 2; ++part) {
    double* out = to + part * kLanes<double>;
    store(out, load(out) + load_double(halves + part * kLanes<double>));
  }
}
}  // namespace detail

// to += left^T right over the first `length` rows. `upper`: what is below the diagonal may be left out. Every member of
// the team adds to its own tiles.
inline void add_float_products(const FloatRows& left, const FloatRows& right, index_t count, index_t length, bool upper,
                               const Dense& to, Team team) {
  constexpr index_t width = kPanelWidth<float>, depth_block = 128;
  for (index_t k = 0; k < length; k += depth_block) {
    const index_t depth = std::min(depth_block, length - k);
    index_t turn = 0;
    for (index_t first = 0; first < count; first += width) {
      const index_t end = std::min(count, first + width);
      for (index_t row = 0; row < (upper ? end : count); row += kTileRows, ++turn) {
        if (turn % team.size() != team.rank()) continue;
        const index_t column = upper && row > first ? first + (row - first) / kLanes<float> * kLanes<float> : first;
        with_vectors<float>((end - column) / kLanes<float>, [&](auto vectors) {
          Vec<float> sums[kTileRows][vectors.value];
          multiply_tile<vectors.value>(left.row(k) + row, left.step, right.row(k) + column, right.step, depth, sums);
          for (int i = 0; i < kTileRows; ++i) {
            for (int v = 0; v < vectors.value; ++v)
              detail::add_as_double(to.row(row + i) + column + v * kLanes<float>, sums[i][v]);
          }
        });
      }
    }
  }
}

// Rows [first, end) of sum_s frame_s weights_s, whole tiles. `triangular`: the weights are zero below the diagonal.
template <int inputs>
inline void write_float_product(const FloatRows (&frames)[inputs], const FloatRows (&weights)[inputs], index_t count,
                                bool triangular, index_t first, index_t end, const FloatRows& to) {
  constexpr index_t width = kPanelWidth<float>;
  for (index_t row = first; row < end; row += kTileRows) {
    for (index_t column = 0; column < count; column += width) {
      const index_t stop = std::min(count, column + width);
      const index_t depth = triangular ? stop : count;
      with_vectors<float>((stop - column) / kLanes<float>, [&](auto vectors) {
        Vec<float> sums[kTileRows][vectors.value];
        multiply_strided_tile<vectors.value>(frames[0].row(row), frames[0].step, index_t(1), weights[0].data + column,
                                             weights[0].step, depth, sums);
        if constexpr (inputs == 2) {
          Vec<float> more[kTileRows][vectors.value];
          multiply_strided_tile<vectors.value>(frames[1].row(row), frames[1].step, index_t(1), weights[1].data + column,
                                               weights[1].step, depth, more);
          for (int i = 0; i < kTileRows; ++i) {
            for (int v = 0; v < vectors.value; ++v) sums[i][v] += more[i][v];
          }
        }
        for (int i = 0; i < kTileRows; ++i) {
          for (int v = 0; v < vectors.value; ++v) store(to.row(row + i) + column + v * kLanes<float>, sums[i][v]);
        }
      });
    }
  }
}

// A copy of a small matrix in float32.
inline void round_to_float(const Dense& from, index_t count, const FloatRows& to) {
  for (index_t i = 0; i < count; ++i) {
    for (index_t j = 0; j < count; j += kLanes<double>) detail::store_as(to.row(i) + j, load(from.row(i) + j));
  }
}

}  // namespace subspan
