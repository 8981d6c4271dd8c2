#include "ops/orthogonal/cayley_items.h"

namespace subspan {
namespace {

using namespace cayley_items;

template <class T>
struct GradientCall {
  const TensorView& W;
  const TensorView& G;
  T* d_A;
  index_t size, items;
  Given given = Given::kSquare;
  const TensorView* turned = nullptr;

  // d K_ij of d A, for every pair once.
  T factor() const { return given == Given::kSquare ? T(0.5) : given == Given::kTriangle ? T(1) : T(-2); }

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
  if (call.given == Given::kPacked) {
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
      G(j, i) = call.given == Given::kTriangle ? entry * 0 : -entry;  // NaN where the item is
      G(i, j) = entry;
    }
  }
  deinterleave<T>(G.data, size, 1, group, size, size, call.d_A);
}

template <class T>
void gradient_padded(const GradientCall<T>& call, index_t item, int threads) {
  const index_t size = call.size;
  Workspace workspace;
  const auto W = PaddedSquare<T>::take(size, workspace), P = PaddedSquare<T>::take(size, workspace),
             S = PaddedSquare<T>::take(size, workspace);
  const T* left = static_cast<const T*>(batch_item(call.G, 2, item));
  index_t left_row = call.G.step(-1), left_column = call.G.step(-2);  // of G^T
  const bool whole = size % kTileRows == 0;
  if (!whole) left = S.data, left_row = 1, left_column = S.step;
  const bool packed = call.given == Given::kPacked;
  T* d_A = call.d_A + item * (packed ? packed_count(size) : size * size);
  parallel_team(threads, [&](Team team) {
    const auto copy = [&](const TensorView& view, const PaddedSquare<T>& to) {
      const Rows<T> from(batch_item(view, 2, item), view.dtype, view.step(-2), view.step(-1));
      for (index_t i = team.rank(); i < size; i += team.size()) {
        const T* in = from.read(i, 0, size, to.row(i));
        if (in != to.row(i)) std::copy_n(in, size, to.row(i));
      }
    };
    copy(call.first(), W);
    if (!whole) copy(call.G, S);  // otherwise it is read where it lies
    team.barrier();
    multiply_into(P, left, left_row, left_column, W, Update::kStore, team);
    team.barrier();
    if (call.turned) copy(call.W, W);
    team.barrier();
    multiply_into(S, W.data, W.step, 1, P, Update::kStore, team);
    team.barrier();
    const T factor = call.factor();
    if (packed) {
      for (index_t i = team.rank(); i < size; i += team.size()) {
        T* row = d_A + packed_row(size, i);
        for (index_t j = i + 1; j < size; ++j) row[j - i - 1] = (S.row(i)[j] - S.row(j)[i]) * factor;
      }
      return;
    }
    each_pair(size, team, [&](index_t i, index_t j) {
      const T entry = (S.row(j)[i] - S.row(i)[j]) * factor;
      d_A[i * size + j] = entry;
      d_A[j * size + i] = call.given == Given::kTriangle ? entry * 0 : -entry;  // NaN where the item is
    });
    for (index_t i = team.rank(); i < size; i += team.size()) d_A[i * size + i] = S.row(i)[i] - S.row(i)[i];
  });
}

template <class T>
void run_gradient(const GradientCall<T>& call, int threads) {
  const double size = static_cast<double>(call.size);
  each_item<T>(
      call.size, kInterleavedProducts, call.items, 4 * size * size * size, threads,
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
    run_gradient(GradientCall<T>{W, G, d_A.ptr<T>(), W.size(-1), batch_count(W, 2), Given::kTriangle, turned}, threads);
  });
}

void cayley_of_packed_gradient_cpu(const TensorView& W, const TensorView& G, const TensorView& d_a, int threads) {
  if (d_a.numel() == 0) return;
  dispatch_float(W.dtype, "cayley_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run_gradient(GradientCall<T>{W, G, d_a.ptr<T>(), W.size(-1), batch_count(W, 2), Given::kPacked}, threads);
  });
}

}  // namespace subspan
