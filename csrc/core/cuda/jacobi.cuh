// Jacobi's singular value decomposition in registers, as core/small_matrix/jacobi.h: rotations make the columns of a
// matrix orthogonal, pair by pair. Matrices of up to 4 x 4 belong to one thread each; of larger ones a group of G lanes
// of a warp holds a column per lane. With a power of two of columns, zeros beyond the last, column c meets column
// c ^ step in step = 1 ... G - 1: every pair once in a sweep, all columns busy, and one shuffle brings the other
// column.
#pragma once
#include <cstring>

#include "core/cuda/launch.cuh"
#include "core/small_matrix/jacobi_constants.h"

namespace subspan {

// Sum over each aligned group of G lanes, to the last bit the same in all of them.
template <int G, class T>
__device__ T group_sum(T value) {
#pragma unroll
  for (int step = G / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <int G, class T>
__device__ T group_max(T value) {
#pragma unroll
  for (int step = G / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

template <int N, class T>
__device__ T dot(const T (&x)[N], const T (&y)[N]) {
  T even = 0, odd = 0;
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    even += x[i] * y[i];
    odd += x[i + 1] * y[i + 1];
  }
  return even + odd;
}

// --- scaling ---------------------------------------------------------------------------------------------------------

template <class T>
constexpr T kSmallestNormal = std::numeric_limits<T>::min();

__device__ inline float power_of_two_below(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= 0x7f800000u;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}
__device__ inline double power_of_two_below(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= 0x7ff0000000000000u;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

// What the entries of one matrix say of its scale; of parts of it, to be combined.
template <class T>
struct Magnitude {
  T largest = 0, poison = 0;  // poison is NaN if an entry is not finite, otherwise 0

  __device__ void add(T entry) {
    const T size = entry < 0 ? -entry : entry;
    largest = size > largest ? size : largest;
    poison += entry * 0;
  }
  template <int G>
  __device__ void combine() {
    largest = group_max<G>(largest);
    poison = group_sum<G>(poison);
  }
  // The power of two by whose reciprocal the largest entry comes to 1 ... 2, so that no square of an entry overflows.
  __device__ T power() const { return power_of_two_below(largest < kSmallestNormal<T> ? kSmallestNormal<T> : largest); }
  __device__ T factor() const { return 1 / power() + poison; }
};

// --- rotations -------------------------------------------------------------------------------------------------------

// [p q] -> [cosine p - sine q, sine p + cosine q]
template <class T>
struct Rotation {
  T cosine = 1, sine = 0;

  __device__ void apply(T& p, T& q) const {
    const T x = p, y = q;
    p = cosine * x - sine * y;
    q = sine * x + cosine * y;
  }
};

// The smaller of the two rotations that make columns of squared norms a and b and product g orthogonal, which are also
// those that make the matrix [a g; g b] diagonal. The arguments become the new squared norms, or diagonal entries.
template <class T>
__device__ Rotation<T> orthogonalizing(T& a, T& b, T g) {
  const T difference = b - a;
  const T square = difference * difference + 4 * g * g + jacobi::kTiny<T>;
  const T root = reciprocal_sqrt((difference < 0 ? -difference : difference) + square * reciprocal_sqrt(square));
  T tangent = 2 * g * root * root;
  tangent = difference < 0 ? -tangent : tangent;
  Rotation<T> rotation;
  rotation.cosine = reciprocal_sqrt(tangent * tangent + 1);
  rotation.sine = rotation.cosine * tangent;
  a -= tangent * g;
  b += tangent * g;
  return rotation;
}

// The rotation of the one-sided method for two columns, the longer to the left. Gives false where there is nothing to
// do, with a rotation that does nothing.
template <class T>
__device__ bool rotate_columns(T& a, T& b, T g, T threshold, Rotation<T>& rotation) {
  constexpr T negligible = jacobi::kNegligible<T> * jacobi::kNegligible<T>;
  const T along = g * reciprocal_sqrt(a + jacobi::kTiny<T>);  // g^2 and a b may underflow
  const bool wanted = along * along > threshold * b && a > negligible && b > negligible;
  rotation = Rotation<T>();
  if (wanted) {
    rotation = orthogonalizing(a, b, g);
    // A rounding error below zero would sort the zeros beyond the last column before this one.
    a = a < 0 ? T(0) : a;
    b = b < 0 ? T(0) : b;
  }
  if (!(b > a)) return wanted;
  // Rotating by a further quarter turn sorts the columns at no cost.
  const T longer = b, c = rotation.cosine;
  b = a;
  a = longer;
  rotation.cosine = rotation.sine;
  rotation.sine = -c;
  return true;
}

// The square of the product of two unit columns of `rows` entries that counts as zero.
template <class T>
T svd_threshold(std::int64_t rows) {
  return jacobi::kEpsilon<T> * jacobi::kEpsilon<T> * static_cast<T>(rows < 4 ? 4 : rows);
}

// --- a group of lanes per matrix -------------------------------------------------------------------------------------

// x = column `lane` of a matrix of the given size, zeros beyond.
template <class T, int N>
__device__ void load_column(T (&x)[N], const T* matrix, std::int64_t row_stride, std::int64_t col_stride, int rows,
                            int columns, int lane) {
  const T* column = matrix + lane * col_stride;
#pragma unroll
  for (int r = 0; r < N; ++r) {
    x[r] = 0;
    if (r < rows && lane < columns) x[r] = column[r * row_stride];
  }
}

// X = U diag(values) V^T. x becomes the lane's column of U diag(values), orthogonal to the others to rounding relative
// to their norms (but see kNegligible), longest first; right its column of V. True where it has not converged.
template <bool Vectors, int G, class T, int N>
__device__ bool svd_group(T (&x)[N], T (&right)[G], T threshold, int lane) {
  constexpr bool keep = N * sizeof(T) <= 128;  // the other column between its two uses; otherwise it is fetched twice
  if (Vectors) {
#pragma unroll
    for (int i = 0; i < G; ++i) right[i] = i == lane;
  }
  bool unsettled = true;
#pragma unroll 1
  for (int sweep = 0; sweep < jacobi::kMaxSweeps && __any_sync(kAllLanes, unsettled); ++sweep) {
    T square = dot(x, x);
    unsettled = false;
#pragma unroll 1
    for (int step = 1; step < G; ++step) {
      T other[N];
#pragma unroll
      for (int i = 0; i < N; ++i) other[i] = __shfl_xor_sync(kAllLanes, x[i], step);
      // Both lanes of a pair find the same rotation, from the same numbers.
      const T product = dot(x, other), other_square = __shfl_xor_sync(kAllLanes, square, step);
      const bool first = lane < (lane ^ step);
      T a = first ? square : other_square, b = first ? other_square : square;
      Rotation<T> rotation;
      const bool changed = rotate_columns(a, b, product, threshold, rotation);
      square = first ? a : b;
      if (!__any_sync(kAllLanes, changed)) continue;
      unsettled = unsettled || changed;
      const T own = rotation.cosine, share = first ? -rotation.sine : rotation.sine;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        x[i] = own * x[i] + share * (keep ? other[i] : __shfl_xor_sync(kAllLanes, x[i], step));
      }
      if (Vectors) {
#pragma unroll
        for (int i = 0; i < G; ++i) right[i] = own * right[i] + share * __shfl_xor_sync(kAllLanes, right[i], step);
      }
    }
  }
  return group_max<G>(static_cast<int>(unsettled)) != 0;
}

// Columns from `solid` on become an orthonormal basis of what the columns before leave, which are orthonormal. Each
// starts from the unit vector farthest from the span so far, made orthogonal twice, which is enough.
template <int G, class T, int N>
__device__ void complete_group(T (&x)[N], int solid, int rows, int columns, int lane) {
#pragma unroll 1
  for (int c = 0; c < columns; ++c) {
    if (!__any_sync(kAllLanes, c >= solid)) continue;
    int farthest = 0;
    T smallest = kInfinity<T>;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const T projected = group_sum<G>(lane < c ? x[i] * x[i] : T(0));
      if (i < rows && projected < smallest) {
        smallest = projected;
        farthest = i;
      }
    }
    T added[N];
#pragma unroll
    for (int i = 0; i < N; ++i) added[i] = i == farthest;
#pragma unroll 1
    for (int time = 0; time < 2; ++time) {
      const T product = lane < c ? dot(x, added) : T(0);
#pragma unroll
      for (int i = 0; i < N; ++i) added[i] -= group_sum<G>(product * x[i]);
      const T factor = reciprocal_sqrt(dot(added, added));
#pragma unroll
      for (int i = 0; i < N; ++i) added[i] *= factor;
    }
    if (c < solid || lane != c) continue;
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = added[i];
  }
}

// --- a thread per matrix ---------------------------------------------------------------------------------------------

// As svd_group, of the columns x[0] ... x[N - 1].
template <bool Vectors, class T, int N>
__device__ bool svd_thread(T (&x)[N][N], T (&right)[N][N], T threshold) {
  if (Vectors) {
#pragma unroll
    for (int c = 0; c < N; ++c) {
#pragma unroll
      for (int i = 0; i < N; ++i) right[c][i] = c == i;
    }
  }
  bool unsettled = true;
#pragma unroll 1
  for (int sweep = 0; sweep < jacobi::kMaxSweeps && unsettled; ++sweep) {
    T square[N];
#pragma unroll
    for (int c = 0; c < N; ++c) square[c] = dot(x[c], x[c]);
    unsettled = false;
#pragma unroll
    for (int step = 1; step < N; ++step) {
#pragma unroll
      for (int p = 0; p < N; ++p) {
        const int q = p ^ step;
        if (q < p) continue;
        Rotation<T> rotation;
        if (!rotate_columns(square[p], square[q], dot(x[p], x[q]), threshold, rotation)) continue;
        unsettled = true;
#pragma unroll
        for (int i = 0; i < N; ++i) rotation.apply(x[p][i], x[q][i]);
        if (Vectors) {
#pragma unroll
          for (int i = 0; i < N; ++i) rotation.apply(right[p][i], right[q][i]);
        }
      }
    }
  }
  return unsettled;
}

// As complete_group.
template <class T, int N>
__device__ void complete_thread(T (&x)[N][N], int solid, int rows, int columns) {
#pragma unroll
  for (int c = 0; c < N; ++c) {
    if (c < solid || c >= columns) continue;
    int farthest = 0;
    T smallest = kInfinity<T>;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      T projected = 0;
#pragma unroll
      for (int b = 0; b < c; ++b) projected += x[b][i] * x[b][i];
      if (i < rows && projected < smallest) {
        smallest = projected;
        farthest = i;
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) x[c][i] = i == farthest;
#pragma unroll
    for (int time = 0; time < 2; ++time) {
#pragma unroll
      for (int b = 0; b < c; ++b) {
        const T product = dot(x[b], x[c]);
#pragma unroll
        for (int i = 0; i < N; ++i) x[c][i] -= product * x[b][i];
      }
      const T factor = reciprocal_sqrt(dot(x[c], x[c]));
#pragma unroll
      for (int i = 0; i < N; ++i) x[c][i] *= factor;
    }
  }
}

}  // namespace subspan
