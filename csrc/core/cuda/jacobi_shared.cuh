// Jacobi's methods in shared memory: the singular value decomposition of matrices too long for jacobi.cuh, a warp each,
// and the eigen-decomposition of symmetric matrices by two-sided rotations, a group of lanes each. Pairs of columns
// meet as there; the lanes divide the entries of both columns among themselves.
#pragma once
#include "core/cuda/jacobi.cuh"

namespace subspan {

// Column p of pair number `pair` in a step, in which it meets column p ^ step > p: the number with a zero bit inserted
// where the step has its highest one.
__device__ inline int first_of_pair(int pair, int highest_bit) {
  return (pair & -highest_bit) * 2 + (pair & (highest_bit - 1));
}

__host__ __device__ inline int next_power_of_two(int count) {
  int power = 1;
  while (power < count) power *= 2;
  return power;
}

// Odd, so that walking along a row visits different banks.
__host__ __device__ constexpr int shared_stride(int length) { return length | 1; }

// --- singular values -------------------------------------------------------------------------------------------------

// Shared memory of one matrix: column c at x + c * x_stride, column c of V at right + c * right_stride.
template <class T>
struct SharedColumns {
  T* x;
  T* right;
  T* squares;  // the squared norms of the columns
  int rows, columns, x_stride, right_stride;

  __host__ __device__ static constexpr std::int64_t entries(std::int64_t rows, int columns, bool vectors) {
    return columns * ((rows | 1) + (vectors ? shared_stride(columns) : 0) + 1);
  }
  __device__ SharedColumns(T* shared, int rows, int columns, bool vectors)
      : x(shared),
        right(x + columns * shared_stride(rows)),
        squares(right + (vectors ? columns * shared_stride(columns) : 0)),
        rows(rows),
        columns(columns),
        x_stride(shared_stride(rows)),
        right_stride(shared_stride(columns)) {}
};

// A pair of columns of `length` entries, of which the lane has every `lanes`th from `own` on.
template <class T>
struct SharedPair {
  T* p;
  T* q;
  int own, lanes, length;

  __device__ T product() const {
    T sum = 0;
    for (int i = own; i < length; i += lanes) sum += p[i] * q[i];
    return sum;
  }
  __device__ void rotate(const Rotation<T>& rotation) const {
    for (int i = own; i < length; i += lanes) rotation.apply(p[i], q[i]);
  }
};

// The sum over each aligned group of `lanes` lanes.
template <class T>
__device__ T shared_sum(T value, int lanes) {
#pragma unroll 1
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// As svd_group, of a matrix that the warp has just written. Leaves the squared norms in m.squares: the last sweep has
// found them and changed nothing.
template <bool Vectors, class T>
__device__ bool svd_shared(const SharedColumns<T>& m, T threshold) {
  const int lane = threadIdx.x % kWarp, seats = next_power_of_two(m.columns);
  const int lanes = seats > 1 ? 2 * kWarp / seats : kWarp, pair = lane / lanes, own = lane % lanes;
  if (Vectors) {
    for (int c = 0; c < m.columns; ++c) {
      if (lane < m.columns) m.right[c * m.right_stride + lane] = c == lane;
    }
  }
  bool unsettled = true;
#pragma unroll 1
  for (int sweep = 0; sweep < jacobi::kMaxSweeps && __any_sync(kAllLanes, unsettled); ++sweep) {
    __syncwarp();
    for (int c = pair; c - pair < m.columns; c += kWarp / lanes) {
      T* column = m.x + (c < m.columns ? c : 0) * m.x_stride;
      const T square = shared_sum(SharedPair<T>{column, column, own, lanes, m.rows}.product(), lanes);
      if (own == 0 && c < m.columns) m.squares[c] = square;
    }
    __syncwarp();
    unsettled = false;
    int highest_bit = 1;
#pragma unroll 1
    for (int step = 1; step < seats; ++step) {
      if (step == 2 * highest_bit) highest_bit = step;
      const int p = first_of_pair(pair, highest_bit), q = p ^ step;
      const bool present = q < m.columns;
      const SharedPair<T> columns{m.x + p * m.x_stride, m.x + q * m.x_stride, own, lanes, present ? m.rows : 0};
      const T product = shared_sum(columns.product(), lanes);
      T a = present ? m.squares[p] : T(0), b = present ? m.squares[q] : T(0);
      __syncwarp();  // before one lane of the pair writes what the others have read
      Rotation<T> rotation;
      if (rotate_columns(a, b, product, threshold, rotation)) {
        unsettled = true;
        columns.rotate(rotation);
        if (Vectors) {
          T* right = m.right;
          SharedPair<T>{right + p * m.right_stride, right + q * m.right_stride, own, lanes, m.columns}.rotate(rotation);
        }
        if (own == 0) {
          m.squares[p] = a;
          m.squares[q] = b;
        }
      }
      __syncwarp();
    }
  }
  return __any_sync(kAllLanes, unsettled);
}

// As complete_group.
template <class T>
__device__ void complete_shared(const SharedColumns<T>& m, int solid) {
  const int lane = threadIdx.x % kWarp;
  __syncwarp();
  for (int c = solid; c < m.columns; ++c) {
    int farthest = 0;
    T smallest = kInfinity<T>;
    for (int i = lane; i < m.rows; i += kWarp) {
      T projected = 0;
      for (int b = 0; b < c; ++b) projected += m.x[b * m.x_stride + i] * m.x[b * m.x_stride + i];
      if (projected < smallest) {
        smallest = projected;
        farthest = i;
      }
    }
    const T least = -group_max<kWarp>(-smallest);
    farthest = -group_max<kWarp>(smallest == least ? -farthest : -m.rows);
    T* column = m.x + c * m.x_stride;
    for (int i = lane; i < m.rows; i += kWarp) column[i] = i == farthest;
    for (int time = 0; time < 2; ++time) {
      for (int b = 0; b < c; ++b) {
        const T* basis = m.x + b * m.x_stride;
        T product = 0;
        for (int i = lane; i < m.rows; i += kWarp) product += basis[i] * column[i];
        product = group_sum<kWarp>(product);
        for (int i = lane; i < m.rows; i += kWarp) column[i] -= product * basis[i];
      }
      T square = 0;
      for (int i = lane; i < m.rows; i += kWarp) square += column[i] * column[i];
      const T factor = reciprocal_sqrt(group_sum<kWarp>(square));
      for (int i = lane; i < m.rows; i += kWarp) column[i] *= factor;
    }
  }
  __syncwarp();
}

// --- eigenvalues -----------------------------------------------------------------------------------------------------

// Shared memory of one symmetric matrix of order up to K, in rows, zeros beyond: both triangles, and its eigenvectors.
template <class T, int K>
struct SharedSymmetric {
  static constexpr int kStride = K + 1, kPairs = K / 2;
  T* a;
  T* vectors;  // column c at vectors[... * kStride + c]
  T* turns;    // of each pair of a step: cosine, sine, and its two new diagonal entries

  __host__ __device__ static constexpr int entries(bool vectors) {
    return (vectors ? 2 : 1) * K * kStride + 4 * kPairs;
  }
  __device__ SharedSymmetric(T* shared, bool with_vectors)
      : a(shared), vectors(a + K * kStride), turns(vectors + (with_vectors ? K * kStride : 0)) {}
  __device__ T& at(int row, int col) const { return a[row * kStride + col]; }
};

// A = Q diag(values) Q^T, of a matrix of the given order that the group has just written; the values are left on the
// diagonal, not sorted. True where it has not converged.
template <Precision precision, bool Vectors, class T, int K>
__device__ bool eigh_group(const SharedSymmetric<T, K>& m, int order, int lane) {
  constexpr int pairs = K / 2;
  constexpr T epsilon = jacobi::kEpsilon<T>;
  if (Vectors) {
    for (int c = 0; c < K; ++c) m.vectors[c * m.kStride + lane] = c == lane;
  }
  __syncwarp();
  T square = 0;
  for (int row = 0; row < K; ++row) square += m.at(row, lane) * m.at(row, lane);
  const T whole_threshold = group_sum<K>(square) * (epsilon * epsilon / 16 / static_cast<T>(order > 0 ? order : 1));
  bool unsettled = true;
#pragma unroll 1
  for (int sweep = 0; sweep < jacobi::kMaxSweeps && __any_sync(kAllLanes, unsettled); ++sweep) {
    unsettled = false;
    int highest_bit = 1;
#pragma unroll 1
    for (int step = 1; step < K; ++step) {
      if (step == 2 * highest_bit) highest_bit = step;
      bool changed = false;
      if (lane < pairs) {
        const int p = first_of_pair(lane, highest_bit), q = p ^ step;
        T a = m.at(p, p), b = m.at(q, q);
        const T g = m.at(p, q), product = a * b;
        const T threshold = precision == Precision::kRelative ? epsilon * epsilon * (product < 0 ? -product : product)
                                                              : whole_threshold;
        changed = g * g > threshold;
        Rotation<T> rotation;
        if (changed) rotation = orthogonalizing(a, b, g);
        T* turn = m.turns + 4 * lane;
        turn[0] = rotation.cosine;
        turn[1] = rotation.sine;
        turn[2] = a;
        turn[3] = b;
      }
      unsettled = unsettled || changed;
      if (!__any_sync(kAllLanes, changed)) continue;
      __syncwarp();
      // Rows p_i, q_i and columns p_j, q_j meet in a 2 x 2 block, which one lane turns from both sides.
#pragma unroll 1
      for (int block = lane; block < pairs * pairs; block += K) {
        const int i = block / pairs, j = block % pairs;
        const int row = first_of_pair(i, highest_bit), col = first_of_pair(j, highest_bit);
        const T* of_rows = m.turns + 4 * i;
        const T* of_cols = m.turns + 4 * j;
        T &pp = m.at(row, col), &pq = m.at(row, col ^ step), &qp = m.at(row ^ step, col),
          &qq = m.at(row ^ step, col ^ step);
        if (i == j) {
          if (of_rows[1] == 0) continue;
          // As the formulas say: rounding must not leave a rest that is rotated for ever.
          pp = of_rows[2];
          qq = of_rows[3];
          pq = qp = 0;
          continue;
        }
        T x = pp, y = pq, z = qp, w = qq;
        const Rotation<T> columns{of_cols[0], of_cols[1]}, rows{of_rows[0], of_rows[1]};
        columns.apply(x, y);
        columns.apply(z, w);
        rows.apply(x, z);
        rows.apply(y, w);
        pp = x;
        pq = y;
        qp = z;
        qq = w;
      }
      if (Vectors) {
#pragma unroll 1
        for (int entry = lane; entry < K * pairs; entry += K) {
          const int row = entry / pairs, j = entry % pairs, col = first_of_pair(j, highest_bit);
          T* vectors = m.vectors + row * m.kStride;
          Rotation<T>{m.turns[4 * j], m.turns[4 * j + 1]}.apply(vectors[col], vectors[col ^ step]);
        }
      }
      __syncwarp();
    }
  }
  return group_max<K>(static_cast<int>(unsettled)) != 0;
}

}  // namespace subspan
