#include "core/dispatch.h"
#include "core/small_matrix/gauss_jordan.h"
#include "core/small_matrix/interleave.h"
#include "ops/orthogonal/cayley.h"

namespace subspan {
namespace {

template <class T>
struct Call {
  const TensorView& A;
  T* Q;
  T* W;
  index_t size, items;
  bool triangle = false;             // A holds K below its diagonal, and nothing else that counts
  const TensorView* base = nullptr;  // what Q is multiplied by
  T* turned = nullptr;               // base W
};

// The largest matrices that lie side by side in SIMD lanes. Measured on AVX-512: lanes share the latency of the pivots,
// while plain products are better where vectors lie along rows.
constexpr index_t kInterleavedInverse = 64, kInterleavedProducts = 16;
// A team waits at three barriers for every block of pivots: what one matrix must cost for that, in the unit of
// useful_threads.
constexpr double kSharedBetween = 64;

// Without row exchanges the rest of the matrix can grow to the square of the norm of K, and rounding errors with it. A
// step of Newton's method, W + W (I - M W), squares the error: how many follow a matrix of this norm, largest sum of
// absolute values in a row.
template <class T>
int newton_steps(T norm) {
  if (!(norm > 32)) return 0;
  const double growth = static_cast<double>(norm) * static_cast<double>(norm) * std::numeric_limits<T>::epsilon();
  return growth < 1e-3 ? 1 : growth < 1 ? 2 : 4;
}
// Where a first inverse in float32 has no correct digit to begin with, float64 is used.
template <class T>
bool needs_double(T norm) {
  return sizeof(T) == 4 && norm * norm * std::numeric_limits<T>::epsilon() > T(0.1);
}

// --- matrices in SIMD lanes -------------------------------------------------------------------------------------

// Rows are an odd number of vectors apart, so that a column does not fall into few sets of a cache.
template <class T>
LaneMatrix<T> take_lane_matrix(index_t size, Workspace& workspace) {
  const index_t step = size > kTinyPivots ? size | 1 : size;
  return {workspace.take<Vec<T>>(size * step), step, 1};
}

// M = I - K / 2 in all lanes; NaN is added to `poison` where A is not finite, and `norm` is that of K.
template <class T>
void load_lanes(const Call<T>& call, const LaneGroup<T>& group, const LaneMatrix<T>& M, Vec<T>& poison, Vec<T>& norm) {
  const index_t size = call.size;
  interleave<T>(call.A, group, M.data, M.row, 1);
  Workspace workspace;
  Vec<T>* sums = workspace.take<Vec<T>>(size);  // of absolute values in a row of K / 2
  for (index_t i = 0; i < size; ++i) {
    Vec<T> sum{}, invalid = call.triangle ? Vec<T>{} : M(i, i) * 0;
    M(i, i) = Vec<T>{} + 1;
    for (index_t j = 0; j < i; ++j) {
      const Vec<T> half = call.triangle ? M(i, j) * T(0.5) : M(i, j) * T(0.25) - M(j, i) * T(0.25);
      invalid += half * 0;
      M(i, j) = -half;
      M(j, i) = half;
      const Vec<T> absolute = half < 0 ? -half : half;
      sum += absolute;
      sums[j] += absolute;
    }
    sums[i] = sum;
    poison += invalid;
  }
  for (index_t i = 0; i < size; ++i) norm = 2 * sums[i] > norm ? 2 * sums[i] : norm;
}

// Lanes that need fewer steps than others stay as they are: no result depends on its neighbours.
template <class T>
[[gnu::noinline]] void refine_lanes(const Call<T>& call, const LaneGroup<T>& group, const LaneMatrix<T>& W,
                                    Vec<T> norm) {
  const index_t size = call.size;
  Vec<T> steps{};
  int most = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    const int own = newton_steps<T>(norm[lane]);
    steps[lane] = static_cast<T>(own);
    most = std::max(most, own);
  }
  Workspace workspace;
  const LaneMatrix<T> M = take_lane_matrix<T>(size, workspace), R = take_lane_matrix<T>(size, workspace),
                      change = take_lane_matrix<T>(size, workspace);
  Vec<T> ignored{};
  load_lanes(call, group, M, ignored, ignored);
  for (int step = 0; step < most; ++step) {
    multiply_interleaved(M, size, W, size, size,
                         [&](index_t i, index_t j, Vec<T> sum) { R(i, j) = T(i == j ? 1 : 0) - sum; });
    multiply_interleaved(W, size, R, size, size, [&](index_t i, index_t j, Vec<T> sum) { change(i, j) = sum; });
    const Mask<T> active = steps > static_cast<T>(step);
    for (index_t i = 0; i < size; ++i) {
      for (index_t j = 0; j < size; ++j) W(i, j) += active ? change(i, j) : Vec<T>{};
    }
  }
}

template <class T, class Out>
void padded(const Call<Out>& call, index_t item, int threads);
template <class T, class Out>
void multiply_base(const Call<Out>& call, index_t item, const PaddedSquare<T>& w, T poison, int threads);

// W and Q = 2 W - I of all lanes, or W in the place of Q where a base is still to be multiplied. Lines that are to be
// written are asked for: every store goes to another item.
template <class T>
void write_lanes(const Call<T>& call, const LaneGroup<T>& group, const LaneMatrix<T>& W, Vec<T> poison) {
  constexpr index_t lanes = kLanes<T>, ahead = 2 * lanes;
  const index_t size = call.size;
  for (index_t r = 0; r < size; ++r) {
    for (index_t c = 0; c < size; c += lanes) {
      const index_t count = std::min(lanes, size - c);
      Vec<T> square[lanes], one{};
      for (index_t i = 0; i < lanes; ++i) square[i] = i < count ? W(r, c + i) + poison : Vec<T>{};
      transpose_square<T>(square);
      if (r >= c && r < c + lanes) one[r - c] = 1;
      for (index_t lane = 0; lane < group.present; ++lane) {
        const index_t first = ((group.first + lane) * size + r) * size + c;
        if (call.W) {
          __builtin_prefetch(call.W + first + ahead, 1, 3);
          store_entries(call.W + first, square[lane], count);
        }
        __builtin_prefetch(call.Q + first + ahead, 1, 3);
        store_entries(call.Q + first, call.base ? square[lane] : 2 * square[lane] - one, count);
      }
    }
  }
}

template <class T>
void interleaved(const Call<T>& call, index_t index) {
  const LaneGroup<T> group(index, call.items);
  const index_t size = call.size;
  Workspace workspace;
  const LaneMatrix<T> W = take_lane_matrix<T>(size, workspace);
  Vec<T>* work = workspace.take<Vec<T>>(invert_interleaved_work(size));
  Vec<T> poison{}, norm{};
  load_lanes(call, group, W, poison, norm);
  invert_interleaved<T>(W.data, W.row, size, work);
  if (any<T>(norm > T(32))) refine_lanes(call, group, W, norm);
  write_lanes(call, group, W, poison);
  const auto own = call.base ? PaddedSquare<T>::take(size, workspace) : PaddedSquare<T>{};
  for (index_t lane = 0; lane < group.present; ++lane) {
    const index_t item = group.first + lane;
    if (needs_double<T>(norm[lane])) {
      padded<double>(call, item, 1);
    } else if (call.base) {
      for (index_t i = 0; i < size; ++i) std::copy_n(call.Q + (item * size + i) * size, size, own.row(i));
      multiply_base<T>(call, item, own, T(0), 1);
    }
  }
}

// --- one matrix, for a team -------------------------------------------------------------------------------------

// Pairs (i, j), j < i, in square blocks, whose transposes stay in the cache; the blocks of some rows belong to each
// member of a team.
template <class Body>
void each_pair(index_t size, Team team, Body&& body) {
  constexpr index_t block = 16;
  for (index_t top = team.rank() * block; top < size; top += team.size() * block) {
    for (index_t left = 0; left <= top; left += block) {
      for (index_t i = top; i < std::min(top + block, size); ++i) {
        for (index_t j = left; j < std::min(left + block, i); ++j) body(i, j);
      }
    }
  }
}

// As load_lanes; gives the norm.
template <class T, class Out>
T load_padded(const Call<Out>& call, index_t item, const PaddedSquare<T>& m, T& poison, int threads) {
  const index_t size = call.size;
  const Rows<Out> rows(batch_item(call.A, 2, item), call.A.dtype, call.A.step(-2), call.A.step(-1));
  Workspace workspace;
  Out* scratch = workspace.take<Out>(size * threads);
  T* norms = workspace.take<T>(2 * threads);
  std::fill_n(norms, 2 * threads, T(0));
  parallel_team(threads, [&](Team team) {
    T& own_poison = norms[threads + team.rank()];
    for (index_t i = team.rank(); i < size; i += team.size()) {
      const Out* in = rows.read(i, 0, size, scratch + team.rank() * size);
      for (index_t j = 0; j < size; ++j) m.row(i)[j] = in[j];
      if (!call.triangle) own_poison += m.row(i)[i] * 0;
      m.row(i)[i] = 1;
    }
    team.barrier();
    each_pair(size, team, [&](index_t i, index_t j) {
      T &lower = m.row(i)[j], &upper = m.row(j)[i];
      const T half = call.triangle ? lower * T(0.5) : lower * T(0.25) - upper * T(0.25);
      lower = -half;
      upper = half;
    });
    team.barrier();
    for (index_t i = team.rank(); i < size; i += team.size()) {
      Vec<T> sums{};
      for (index_t j = 0; j < size; j += kLanes<T>) {
        const Vec<T> entries = load(m.row(i) + j);
        sums += entries < 0 ? -entries : entries;
      }
      T sum = -1;
      for (index_t lane = 0; lane < kLanes<T>; ++lane) sum += sums[lane];
      sum *= 2;
      own_poison += sum * 0;
      norms[team.rank()] = std::max(norms[team.rank()], sum);
    }
  });
  for (int i = 0; i < threads; ++i) poison += norms[threads + i];
  return *std::max_element(norms, norms + threads);
}

template <class T, class Out>
[[gnu::noinline]] void refine_padded(const Call<Out>& call, index_t item, const PaddedSquare<T>& W, int steps,
                                     int threads) {
  Workspace workspace;
  const auto M = PaddedSquare<T>::take(call.size, workspace), R = PaddedSquare<T>::take(call.size, workspace);
  T ignored = 0;
  load_padded(call, item, M, ignored, 1);
  parallel_team(threads, [&](Team team) {
    for (int step = 0; step < steps; ++step) {
      const auto own_rows = [&](auto&& body) {
        for (index_t i = team.rank(); i < call.size; i += team.size()) body(i);
      };
      own_rows([&](index_t i) {
        std::fill_n(R.row(i), call.size, T(0));
        R.row(i)[i] = 1;
      });
      team.barrier();
      multiply_into(R, M.data, M.step, 1, W, Update::kSubtract, team);
      team.barrier();
      // W R, then W + W R through R: W is an operand of all rows.
      own_rows([&](index_t i) { R.row(i)[i] += 1; });
      team.barrier();
      multiply_into(M, W.data, W.step, 1, R, Update::kStore, team);
      team.barrier();
      own_rows([&](index_t i) { std::copy_n(M.row(i), call.size, W.row(i)); });
      team.barrier();
      if (step + 1 < steps && team.rank() == 0) load_padded(call, item, M, ignored, 1);
      team.barrier();
    }
  });
}

template <class T, class Out>
void store_inverse(const Call<Out>& call, index_t item, const PaddedSquare<T>& w, T poison, index_t row) {
  if (!call.W) return;
  Out* W = call.W + (item * call.size + row) * call.size;
  for (index_t j = 0; j < call.size; ++j) W[j] = static_cast<Out>(w.row(row)[j] + poison);
}

// W, B W and 2 B W - B.
template <class T, class Out>
void multiply_base(const Call<Out>& call, index_t item, const PaddedSquare<T>& w, T poison, int threads) {
  const index_t size = call.size, first = item * size * size;
  Workspace workspace;
  const auto product = PaddedSquare<T>::take(size, workspace), base = PaddedSquare<T>::take(size, workspace);
  const Rows<Out> rows(batch_item(*call.base, 2, item), call.base->dtype, call.base->step(-2), call.base->step(-1));
  Out* scratch = workspace.take<Out>(size * threads);
  parallel_team(threads, [&](Team team) {
    for (index_t i = team.rank(); i < size; i += team.size()) {
      const Out* in = rows.read(i, 0, size, scratch + team.rank() * size);
      for (index_t j = 0; j < size; ++j) base.row(i)[j] = in[j];
    }
    team.barrier();
    multiply_into(product, base.data, base.step, 1, w, Update::kStore, team);
    team.barrier();
    for (index_t i = team.rank(); i < size; i += team.size()) {
      const T *own = product.row(i), *from = base.row(i);
      Out* Q = call.Q + first + i * size;
      Out* turned = call.turned ? call.turned + first + i * size : nullptr;
      store_inverse(call, item, w, poison, i);
      for (index_t j = 0; turned && j < size; ++j) turned[j] = static_cast<Out>(own[j] + poison);
      for (index_t j = 0; j < size; ++j) Q[j] = static_cast<Out>(2 * own[j] - from[j] + poison);
    }
  });
}

template <class T, class Out>
void padded(const Call<Out>& call, index_t item, int threads) {
  const index_t size = call.size;
  Workspace workspace;
  const auto w = PaddedSquare<T>::take(size, workspace);
  T* work = workspace.take<T>(invert_padded_work<T>(size));
  T poison = 0;
  const T norm = load_padded(call, item, w, poison, threads);
  if (needs_double<T>(norm)) return padded<double>(call, item, threads);
  const int steps = newton_steps<T>(norm);
  parallel_team(threads, [&](Team team) { invert_padded(w, work, team); });
  if (steps > 0) refine_padded(call, item, w, steps, threads);
  if (call.base) return multiply_base(call, item, w, poison, threads);
  for (index_t i = 0; i < size; ++i) {
    store_inverse(call, item, w, poison, i);
    T* in = w.row(i);
    in[i] -= T(0.5);
    Out* Q = call.Q + (item * size + i) * size;
    for (index_t j = 0; j < size; ++j) Q[j] = static_cast<Out>(2 * in[j] + poison);
  }
}

// --- the gradient -----------------------------------------------------------------------------------------------

template <class T>
struct GradientCall {
  const TensorView& W;
  const TensorView& G;
  T* d_A;
  index_t size, items;
  bool triangle = false;
  const TensorView* turned = nullptr;

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
  const T factor = call.triangle ? T(1) : T(0.5);
  multiply_interleaved(G.transposed(), size, W, size, size,
                       [&](index_t i, index_t j, Vec<T> sum) { P(i, j) = sum * factor; });
  if (call.turned) interleave<T>(call.W, group, W.data, size, 1);
  multiply_interleaved(W, size, P, size, size, [&](index_t i, index_t j, Vec<T> sum) { G(i, j) = sum; });  // S^T / 2
  for (index_t i = 0; i < size; ++i) {
    G(i, i) -= G(i, i);
    for (index_t j = 0; j < i; ++j) {
      const Vec<T> half = G(j, i) - G(i, j);
      G(j, i) = call.triangle ? half * 0 : -half;  // NaN where the item is
      G(i, j) = half;
    }
  }
  deinterleave<T>(G.data, size, 1, group, size, size, call.d_A);
}

// A square operand whose rows are whole vectors, where it lies or as a copy.
template <class T>
PaddedSquare<T> padded_rows(const TensorView& matrices, index_t item, Workspace& workspace) {
  const index_t size = matrices.size(-1), step = matrices.step(-2);
  T* data = static_cast<T*>(const_cast<void*>(batch_item(matrices, 2, item)));
  if (size % std::max<index_t>(kLanes<T>, kTileRows) == 0 && matrices.step(-1) == 1) return {data, size, step};
  const auto copy = PaddedSquare<T>::take(size, workspace);
  const Rows<T> rows(data, matrices.dtype, step, matrices.step(-1));
  for (index_t i = 0; i < size; ++i) {
    const T* in = rows.read(i, 0, size, copy.row(i));
    if (in != copy.row(i)) std::copy_n(in, size, copy.row(i));
  }
  return copy;
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
  const auto first = padded_rows<T>(call.first(), item, workspace);
  const auto second = call.turned ? padded_rows<T>(call.W, item, workspace) : first;
  const auto P = PaddedSquare<T>::take(size, workspace), S = PaddedSquare<T>::take(size, workspace);
  const T* left = static_cast<const T*>(batch_item(call.G, 2, item));  // G^T
  index_t left_row = call.G.step(-1), left_column = call.G.step(-2);
  const bool whole = size % kTileRows == 0;
  if (!whole) {
    const auto G = padded_rows<T>(call.G, item, workspace);
    left = G.data, left_row = 1, left_column = G.step;
  }
  T* d_A = call.d_A + item * size * size;
  parallel_team(threads, [&](Team team) {
    multiply_into(P, left, left_row, left_column, first, Update::kStore, team);
    team.barrier();
    multiply_into(S, second.data, second.step, 1, P, Update::kStore, team);
    team.barrier();
    write_skew_part(S, call.triangle, d_A, team);
  });
}

// interleaved(group) or padded(item, threads) for all items: matrices lie side by side in SIMD lanes up to the size
// `most`, provided there are enough to fill them.
template <class T, class Interleaved, class Padded>
void each_item(index_t size, index_t most, index_t items, double flops, int threads, Interleaved&& interleaved,
               Padded&& padded) {
  const int useful = useful_threads(flops * static_cast<double>(items), threads);
  if (size <= kTinyPivots || (size <= most && 4 * items >= kLanes<T>)) {
    parallel_for(lane_groups<T>(items), useful, interleaved);
  } else if (items >= threads) {
    parallel_for(items, useful, [&](index_t item) { padded(item, 1); });
  } else {
    for (index_t item = 0; item < items; ++item) padded(item, useful_threads(flops / kSharedBetween, threads));
  }
}

template <class T>
void run(const Call<T>& call, int threads) {
  const double size = static_cast<double>(call.size);
  each_item<T>(
      call.size, kInterleavedInverse, call.items, (call.base ? 4 : 2) * size * size * size, threads,
      [&](index_t group) { interleaved(call, group); },
      [&](index_t item, int useful) { padded<T>(call, item, useful); });
}

template <class T>
void run_gradient(const GradientCall<T>& call, int threads) {
  const double size = static_cast<double>(call.size);
  each_item<T>(
      call.size, kInterleavedProducts, call.items, 4 * size * size * size, threads,
      [&](index_t group) { gradient_interleaved(call, group); },
      [&](index_t item, int useful) { gradient_padded(call, item, useful); });
}

template <class T>
T* entries(const TensorView* view) {
  return view ? view->ptr<T>() : nullptr;
}

}  // namespace

void cayley_cpu(const TensorView& A, const TensorView& Q, const TensorView* W, int threads) {
  if (A.numel() == 0) return;
  dispatch_float(compute_dtype(A.dtype), "cayley", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run(Call<T>{A, Q.ptr<T>(), entries<T>(W), A.size(-1), batch_count(A, 2)}, threads);
  });
}

void cayley_of_triangle_cpu(const CayleyOfTriangle& in, const TensorView& Q, const TensorView* W,
                            const TensorView* turned, int threads) {
  const TensorView& A = in.A;
  if (A.numel() == 0) return;
  dispatch_float(compute_dtype(A.dtype), "cayley", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run(Call<T>{A, Q.ptr<T>(), entries<T>(W), A.size(-1), batch_count(A, 2), true, in.base, entries<T>(turned)},
        threads);
  });
}

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
    run_gradient(GradientCall<T>{W, G, d_A.ptr<T>(), W.size(-1), batch_count(W, 2), true, turned}, threads);
  });
}

}  // namespace subspan
