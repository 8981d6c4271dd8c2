#include "core/dispatch.h"
#include "core/small_matrix/gauss_jordan.h"
#include "ops/orthogonal/cayley.h"
#include "ops/orthogonal/cayley_items.h"

namespace subspan {
namespace {

// The largest matrices that lie side by side in SIMD lanes. Beyond, plain products, with vectors along rows, are
// better; of 32 float32 rows, which are whole vectors where they lie, too.
template <class T>
constexpr index_t kInterleavedProducts = sizeof(T) == 4 ? 31 : 16;

template <class T>
struct GradientCall {
  const TensorView& W;
  const TensorView& G;
  T* d_A;
  index_t size, items;
  SkewStorage given = SkewStorage::kSquare;
  const TensorView* turned = nullptr;

  // d K_ij of d A, for every pair once.
  T factor() const { return given == SkewStorage::kSquare ? T(0.5) : given == SkewStorage::kTriangle ? T(1) : T(-2); }

  const TensorView& first() const { return turned ? *turned : W; }  // of S = first^T G W^T
};

template <class T>
void gradient_interleaved(const GradientCall<T>& call, index_t index) {
  const LaneGroup<T> group(index, call.items);
  const index_t size = call.size, entries = size * size;
  Workspace workspace;
  const LaneMatrix<T> W{workspace.take<Vec<T>>(entries), size, 1}, G{workspace.take<Vec<T>>(entries), size, 1},
      P{workspace.take<Vec<T>>(entries), size, 1};
  interleave<T>(call.first(), group, W.data, size, 1);
  interleave<T>(call.G, group, G.data, size, 1);
  multiply_interleaved(G.transposed(), size, W, size, size,
                       [&](index_t i, index_t j, Vec<T> sum) { P(i, j) = sum * call.factor(); });
  if (call.turned) interleave<T>(call.W, group, W.data, size, 1);
  multiply_interleaved(W, size, P, size, size, [&](index_t i, index_t j, Vec<T> sum) { G(i, j) = sum; });  // S^T
  if (call.given == SkewStorage::kPacked) {
    Vec<T>* entry = P.data;
    for (index_t j = 0; j < size; ++j) {
      for (index_t i = j + 1; i < size; ++i) *entry++ = G(j, i) - G(i, j);
    }
    return deinterleave<T>(P.data, 0, 1, group, 1, packed_count(size), call.d_A);
  }
  for (index_t i = 0; i < size; ++i) {
    G(i, i) -= G(i, i);
    for (index_t j = 0; j < i; ++j) {
      const Vec<T> entry = G(j, i) - G(i, j);
      G(j, i) = call.given == SkewStorage::kTriangle ? entry * 0 : -entry;  // NaN where the item is
      G(i, j) = entry;
    }
  }
  deinterleave<T>(G.data, size, 1, group, size, size, call.d_A);
}

// A square operand whose rows are whole vectors, where it lies or with room for a copy.
template <class T>
PaddedSquare<T> operand(const TensorView& matrices, index_t item, Workspace& workspace) {
  const index_t size = matrices.size(-1);
  void* data = const_cast<void*>(batch_item(matrices, 2, item));
  const bool in_place = size % std::max<index_t>(kLanes<T>, kTileRows) == 0 && matrices.step(-1) == 1;
  return in_place ? PaddedSquare<T>{static_cast<T*>(data), size, matrices.step(-2)}
                  : PaddedSquare<T>::take(size, workspace);
}

// 1 in the first r lanes, 0 in the others.
template <class T>
Vec<T> below_diagonal(index_t r) {
  Vec<T> ones{};
  for (index_t lane = 0; lane < r; ++lane) ones[lane] = 1;
  return ones;
}

// d_A = (S^T - S) / 2, or of S^T - S the lower triangle and zeros (NaN where the item is), in squares of kLanes x
// kLanes entries, each with its mirror image. Rows of squares are dealt to the team; the rows of S are whole vectors.
template <class T>
void write_skew_part(const PaddedSquare<T>& S, bool triangle, T* d_A, Team team) {
  constexpr index_t lanes = kLanes<T>;
  const index_t size = S.size;
  const T factor = triangle ? T(1) : T(0.5);
  const auto read = [&](index_t row, index_t column, Vec<T>(&square)[lanes]) {
    for (index_t r = 0; r < lanes; ++r) square[r] = row + r < size ? load(S.row(row + r) + column) : Vec<T>{};
  };
  const auto write = [&](index_t row, index_t column, const Vec<T>(&square)[lanes]) {
    const index_t count = std::min(lanes, size - column);
    for (index_t r = 0; r < std::min(lanes, size - row); ++r) {
      store_entries(d_A + (row + r) * size + column, square[r], count);
    }
  };
  for (index_t i = team.rank() * lanes; i < size; i += team.size() * lanes) {
    for (index_t j = i; j < size; j += lanes) {
      Vec<T> here[lanes], there[lanes];
      read(i, j, here);
      read(j, i, there);
      transpose_square<T>(there);
      for (index_t r = 0; r < lanes; ++r) here[r] = (there[r] - here[r]) * factor;
      for (index_t r = 0; r < lanes; ++r) there[r] = -here[r];
      transpose_square<T>(there);
      if (triangle) {
        for (index_t r = 0; r < lanes; ++r) here[r] *= i == j ? below_diagonal<T>(r) : Vec<T>{};
      }
      write(i, j, here);
      if (i != j) write(j, i, there);
    }
  }
}

template <class T>
void gradient_padded(const GradientCall<T>& call, index_t item, int threads) {
  const index_t size = call.size;
  Workspace workspace;
  const auto first = operand<T>(call.first(), item, workspace);
  const auto second = call.turned ? operand<T>(call.W, item, workspace) : first;
  const auto P = PaddedSquare<T>::take(size, workspace), S = PaddedSquare<T>::take(size, workspace);
  // G^T, of which whole tiles are read where they lie; S is free until then.
  const bool whole = size % kTileRows == 0;
  const void* given = batch_item(call.G, 2, item);
  const T* left = whole ? static_cast<const T*>(given) : S.data;
  const index_t left_row = whole ? call.G.step(-1) : 1, left_column = whole ? call.G.step(-2) : S.step;
  const bool packed = call.given == SkewStorage::kPacked;
  T* d_A = call.d_A + item * (packed ? packed_count(size) : size * size);
  const auto bring = [&](const TensorView& from, const PaddedSquare<T>& to, Team team) {
    if (to.data != batch_item(from, 2, item)) copy_matrix(from, item, to, team);
  };
  parallel_team(threads, [&](Team team) {
    bring(call.first(), first, team);
    if (call.turned) bring(call.W, second, team);
    if (!whole) copy_matrix(call.G, item, S, team);
    team.barrier();
    multiply_into(P, left, left_row, left_column, first, Update::kStore, team);
    team.barrier();
    multiply_into(S, second.data, second.step, 1, P, Update::kStore, team);
    team.barrier();
    if (packed) {
      for (index_t i = team.rank(); i < size; i += team.size()) {
        T* row = d_A + packed_row(size, i) - i - 1;
        for (index_t j = i + 1; j < size; ++j) row[j] = (S.row(i)[j] - S.row(j)[i]) * call.factor();
      }
      return;
    }
    write_skew_part(S, call.given == SkewStorage::kTriangle, d_A, team);
  });
}

template <class T>
void run_gradient(const GradientCall<T>& call, int threads) {
  const double size = static_cast<double>(call.size);
  each_item<T>(
      call.size, kInterleavedProducts<T>, call.items, 4 * size * size * size, threads,
      [&](index_t group) { gradient_interleaved(call, group); },
      [&](index_t item, int useful) { gradient_padded(call, item, useful); });
}

}  // namespace

void cayley_gradient_cpu(const TensorView& W, const TensorView& G, const TensorView& d_A, int threads) {
  if (W.numel() == 0) return;
  dispatch_float(W.dtype, "cayley_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run_gradient(GradientCall<T>{W, G, d_A.ptr<T>(), W.size(-1), batch_count(W, 2)}, threads);
  });
}

void cayley_of_triangle_gradient_cpu(const TensorView& W, const TensorView* turned, const TensorView& G,
                                     const TensorView& d_A, int threads) {
  if (W.numel() == 0) return;
  dispatch_float(W.dtype, "cayley_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run_gradient(GradientCall<T>{W, G, d_A.ptr<T>(), W.size(-1), batch_count(W, 2), SkewStorage::kTriangle, turned},
                 threads);
  });
}

void cayley_of_packed_gradient_cpu(const TensorView& W, const TensorView& G, const TensorView& d_a, int threads) {
  if (d_a.numel() == 0) return;
  dispatch_float(W.dtype, "cayley_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run_gradient(GradientCall<T>{W, G, d_a.ptr<T>(), W.size(-1), batch_count(W, 2), SkewStorage::kPacked}, threads);
  });
}

}  // namespace subspan
