#include "ops/orthogonal/cayley_items.h"

namespace subspan {
namespace {

using namespace cayley_items;

template <class T>
struct Call {
  const TensorView& A;
  T* Q;
  T* W;
  index_t size, items;
  Given given = Given::kSquare;
  const TensorView* base = nullptr;  // what Q is multiplied by
  T* turned = nullptr;               // base W
};

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

// M = I - K / 2 in all lanes; NaN is added to `poison` where A is not finite, and `norm` is that of K.
template <class T>
void load_lanes(const Call<T>& call, const LaneGroup<T>& group, Vec<T>* m, Vec<T>& poison, Vec<T>& norm) {
  const index_t size = call.size;
  Workspace workspace;
  const bool packed = call.given == Given::kPacked, whole = call.given == Given::kSquare;
  const Vec<T>* entries = nullptr;
  if (packed) {
    Vec<T>* read = workspace.take<Vec<T>>(packed_count(size));
    interleave<T>(call.A, group, read, 0, 1);
    entries = read;
  } else {
    interleave<T>(call.A, group, m, size, 1);
  }
  for (index_t j = 0; j < size; ++j) {
    if (whole) poison += m[j * size + j] * 0;
    m[j * size + j] = Vec<T>{} + 1;
    for (index_t i = j + 1; i < size; ++i) {
      Vec<T>&lower = m[i * size + j], &upper = m[j * size + i];
      const Vec<T> half = packed ? -*entries++ : whole ? lower * T(0.25) - upper * T(0.25) : lower * T(0.5);
      poison += half * 0;
      lower = -half;
      upper = half;
    }
  }
  for (index_t i = 0; i < size; ++i) {
    Vec<T> sum{};
    for (index_t j = 0; j < size; ++j) sum += m[i * size + j] < 0 ? -m[i * size + j] : m[i * size + j];
    sum = 2 * (sum - 1);
    norm = sum > norm ? sum : norm;
  }
}

// Lanes that need fewer steps than others stay as they are: no result depends on its neighbours.
template <class T>
[[gnu::noinline]] void refine_lanes(const Call<T>& call, const LaneGroup<T>& group, const LaneMatrix<T>& W,
                                    Vec<T> norm) {
  const index_t size = call.size, entries = size * size;
  Vec<T> steps{};
  int most = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    const int own = newton_steps<T>(norm[lane]);
    steps[lane] = static_cast<T>(own);
    most = std::max(most, own);
  }
  Workspace workspace;
  const LaneMatrix<T> M{workspace.take<Vec<T>>(entries), size, 1}, R{workspace.take<Vec<T>>(entries), size, 1},
      change{workspace.take<Vec<T>>(entries), size, 1};
  Vec<T> ignored{};
  load_lanes(call, group, M.data, ignored, ignored);
  for (int step = 0; step < most; ++step) {
    multiply_interleaved(M, size, W, size, size,
                         [&](index_t i, index_t j, Vec<T> sum) { R(i, j) = T(i == j ? 1 : 0) - sum; });
    multiply_interleaved(W, size, R, size, size, [&](index_t i, index_t j, Vec<T> sum) { change(i, j) = sum; });
    const Mask<T> active = steps > static_cast<T>(step);
    for (index_t e = 0; e < entries; ++e) W.data[e] += active ? change.data[e] : Vec<T>{};
  }
}

template <class T, class Out>
void padded(const Call<Out>& call, index_t item, int threads);
template <class T, class Out>
void multiply_base(const Call<Out>& call, index_t item, const PaddedSquare<T>& w, T poison, int threads);

template <class T>
void interleaved(const Call<T>& call, index_t index) {
  const LaneGroup<T> group(index, call.items);
  const index_t size = call.size;
  Workspace workspace;
  Vec<T>* w = workspace.take<Vec<T>>(size * size);
  Vec<T>* work = workspace.take<Vec<T>>(invert_interleaved_work(size));
  Vec<T> poison{}, norm{};
  load_lanes(call, group, w, poison, norm);
  invert_interleaved<T>(w, size, work);
  if (any<T>(norm > T(32))) refine_lanes(call, group, LaneMatrix<T>{w, size, 1}, norm);
  for (index_t e = 0; e < size * size; ++e) w[e] += poison;
  if (call.W) deinterleave<T>(w, size, 1, group, size, size, call.W);
  if (!call.base) {
    for (index_t e = 0; e < size * size; ++e) w[e] *= 2;
    for (index_t i = 0; i < size; ++i) w[i * size + i] -= 1;
  }
  deinterleave<T>(w, size, 1, group, size, size, call.Q);
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

// As load_lanes; gives the norm.
template <class T, class Out>
T load_padded(const Call<Out>& call, index_t item, const PaddedSquare<T>& m, T& poison, int threads) {
  const index_t size = call.size;
  const Rows<Out> rows(batch_item(call.A, 2, item), call.A.dtype, call.A.step(-2), call.A.step(-1));
  Workspace workspace;
  const bool packed = call.given == Given::kPacked, whole = call.given == Given::kSquare;
  Out* scratch = workspace.take<Out>(size * threads);
  T* norms = workspace.take<T>(2 * threads);
  std::fill_n(norms, 2 * threads, T(0));
  parallel_team(threads, [&](Team team) {
    T& own_poison = norms[threads + team.rank()];
    for (index_t i = team.rank(); i < size; i += team.size()) {
      Out* own = scratch + team.rank() * size;
      const index_t first = packed ? i + 1 : 0;
      const Out* in = packed ? rows.read(0, packed_row(size, i), size - first, own) : rows.read(i, 0, size, own);
      for (index_t j = first; j < size; ++j) m.row(i)[j] = in[j - first];
      if (whole) own_poison += m.row(i)[i] * 0;
      m.row(i)[i] = 1;
    }
    team.barrier();
    each_pair(size, team, [&](index_t i, index_t j) {
      T &lower = m.row(i)[j], &upper = m.row(j)[i];
      const T half = packed ? -upper : whole ? lower * T(0.25) - upper * T(0.25) : lower * T(0.5);
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

template <class T>
void run(const Call<T>& call, int threads) {
  const double size = static_cast<double>(call.size);
  each_item<T>(
      call.size, kInterleavedInverse, call.items, (call.base ? 4 : 2) * size * size * size, threads,
      [&](index_t group) { interleaved(call, group); },
      [&](index_t item, int useful) { padded<T>(call, item, useful); });
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
    run(Call<T>{A, Q.ptr<T>(), entries<T>(W), A.size(-1), batch_count(A, 2), Given::kTriangle, in.base,
                entries<T>(turned)},
        threads);
  });
}

void cayley_of_packed_cpu(const TensorView& a, const TensorView& Q, const TensorView* W, int threads) {
  if (Q.numel() == 0) return;
  dispatch_float(compute_dtype(a.dtype), "cayley", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run(Call<T>{a, Q.ptr<T>(), entries<T>(W), Q.size(-1), batch_count(a, 2), Given::kPacked}, threads);
  });
}

}  // namespace subspan
