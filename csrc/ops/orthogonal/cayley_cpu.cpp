#include "core/dispatch.h"
#include "core/small_matrix/gauss_jordan.h"
#include "core/small_matrix/interleave.h"
#include "ops/orthogonal/cayley.h"
#include "ops/orthogonal/cayley_items.h"

namespace subspan {
namespace {

template <class T>
struct Call {
  const TensorView& A;
  T* Q;
  T* W;
  index_t size, items;
  SkewStorage given = SkewStorage::kSquare;
  const TensorView* base = nullptr;  // what Q is multiplied by
  T* turned = nullptr;               // base W
};

// The largest matrices that lie side by side in SIMD lanes. Measured on AVX-512: lanes share the latency of the pivots.
constexpr index_t kInterleavedInverse = 64;

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
  Workspace workspace;
  const bool packed = call.given == SkewStorage::kPacked, whole = call.given == SkewStorage::kSquare;
  Vec<T>* entries = packed ? workspace.take<Vec<T>>(packed_count(size)) : nullptr;
  if (packed) {
    interleave<T>(call.A, group, entries, 0, 1);
  } else {
    interleave<T>(call.A, group, M.data, M.row, 1);
  }
  Vec<T>* sums = workspace.take<Vec<T>>(size);  // of absolute values in a row of K / 2
  for (index_t i = 0; i < size; ++i) {
    Vec<T> sum{}, invalid = whole ? M(i, i) * 0 : Vec<T>{};
    M(i, i) = Vec<T>{} + 1;
    for (index_t j = 0; j < i; ++j) {
      const Vec<T> half = packed  ? -entries[packed_row(size, j) + i - j - 1]
                          : whole ? M(i, j) * T(0.25) - M(j, i) * T(0.25)
                                  : M(i, j) * T(0.5);
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

// W and Q = 2 W - I of all lanes, or W in the place of Q where a base is still to be multiplied.
template <class T>
void write_lanes(const Call<T>& call, const LaneGroup<T>& group, const LaneMatrix<T>& W, Vec<T> poison) {
  constexpr index_t lanes = kLanes<T>;
  const index_t size = call.size, entries = size * size;
  if (any<T>(poison != poison)) {
    for (index_t r = 0; r < size; ++r) {
      for (index_t c = 0; c < size; ++c) W(r, c) += poison;
    }
  }
  Workspace workspace;
  const LaneItems<T> items = separate<T>(W.data, W.row, W.column, size, size, workspace);
  for (index_t lane = 0; lane < group.present; ++lane) {
    const T* from = items[lane];
    T* Q = call.Q + (group.first + lane) * entries;
    if (call.W) std::copy_n(from, entries, call.W + (group.first + lane) * entries);
    if (call.base) {
      std::copy_n(from, entries, Q);
      continue;
    }
    index_t e = 0;
    for (; e + lanes <= entries; e += lanes) store(Q + e, 2 * load(from + e));
    if (e < entries) store_entries(Q + e, 2 * load(from + e), entries - e);
    for (index_t d = 0; d < entries; d += size + 1) Q[d] = 2 * from[d] - 1;
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

// M from what A is given as, in squares, each with its mirror image; rows of squares are dealt to the team.
template <class T>
void form_pivots(const PaddedSquare<T>& m, SkewStorage given, Team team) {
  constexpr index_t lanes = kLanes<T>;
  Vec<T> lane;
  for (index_t i = 0; i < lanes; ++i) lane[i] = static_cast<T>(i);
  for (index_t i = team.rank() * lanes; i < m.size; i += team.size() * lanes) {
    for (index_t j = 0; j <= i; j += lanes) {
      Vec<T> half[lanes], mirrored[lanes];  // of K, negative: below the diagonal
      if (given != SkewStorage::kTriangle) {
        load_square(m, j, i, half);
        transpose_square<T>(half);
      }
      if (given != SkewStorage::kPacked) {
        Vec<T> lower[lanes];
        load_square(m, i, j, lower);
        const bool whole = given == SkewStorage::kSquare;
#pragma GCC unroll 16
        for (index_t r = 0; r < lanes; ++r) half[r] = whole ? (half[r] - lower[r]) * T(0.25) : lower[r] * T(-0.5);
      }
      if (i == j) {
        for (index_t r = 0; r < lanes; ++r) half[r] = lane < static_cast<T>(r) ? half[r] : Vec<T>{};
      }
#pragma GCC unroll 16
      for (index_t r = 0; r < lanes; ++r) mirrored[r] = -half[r];
      transpose_square<T>(mirrored);
      if (i != j) {
        store_square(m, j, i, mirrored);
      } else {
        for (index_t r = 0; r < lanes; ++r) {
          const T one = i + r < m.size ? T(1) : T(0);
          half[r] = lane == static_cast<T>(r) ? broadcast(one) : half[r] + mirrored[r];
        }
      }
      store_square(m, i, j, half);
    }
  }
}

// As load_lanes; gives the norm.
template <class T, class Out>
T load_padded(const Call<Out>& call, index_t item, const PaddedSquare<T>& m, T& poison, int threads) {
  const index_t size = call.size;
  Workspace workspace;
  const bool packed = call.given == SkewStorage::kPacked;
  T* norms = workspace.take<T>(2 * threads);
  std::fill_n(norms, 2 * threads, T(0));
  parallel_team(threads, [&](Team team) {
    T invalid = 0, norm = 0;
    if (packed) {
      const Rows<T> rows(batch_item(call.A, 2, item), call.A.dtype, call.A.step(-2), call.A.step(-1));
      own_rows(size, team, [&](index_t i) {
        T* to = m.row(i) + i + 1;
        const T* in = rows.read(0, packed_row(size, i), size - i - 1, to);
        if (in != to) std::copy_n(in, size - i - 1, to);
      });
    } else {
      copy_matrix(call.A, item, m, team);
    }
    team.barrier();
    if (call.given == SkewStorage::kSquare && team.rank() == 0) {
      for (index_t i = 0; i < size; ++i) invalid += m.row(i)[i] * 0;
    }
    team.barrier();
    form_pivots(m, call.given, team);
    team.barrier();
    own_rows(size, team, [&](index_t i) {
      Vec<T> sums{};
      for (index_t j = 0; j < size; j += kLanes<T>) {
        const Vec<T> entries = load(m.row(i) + j);
        sums += entries < 0 ? -entries : entries;
      }
      T sum = -1;
      for (index_t lane = 0; lane < kLanes<T>; ++lane) sum += sums[lane];
      sum *= 2;
      invalid += sum * 0;
      norm = std::max(norm, sum);
    });
    norms[team.rank()] = norm;
    norms[threads + team.rank()] = invalid;
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
      own_rows(call.size, team, [&](index_t i) {
        std::fill_n(R.row(i), call.size, T(0));
        R.row(i)[i] = 1;
      });
      team.barrier();
      multiply_into(R, M.data, M.step, 1, W, Update::kSubtract, team);
      team.barrier();
      // W R, then W + W R through R: W is an operand of all rows.
      own_rows(call.size, team, [&](index_t i) { R.row(i)[i] += 1; });
      team.barrier();
      multiply_into(M, W.data, W.step, 1, R, Update::kStore, team);
      team.barrier();
      own_rows(call.size, team, [&](index_t i) { std::copy_n(M.row(i), call.size, W.row(i)); });
      team.barrier();
      if (step + 1 < steps && team.rank() == 0) load_padded(call, item, M, ignored, 1);
      team.barrier();
    }
  });
}

// A vector as `count` numbers of the type of the result.
template <class Out, class T>
[[gnu::always_inline]] inline void store_result(Out* to, Vec<T> v, index_t count) {
  if constexpr (sizeof(Out) == sizeof(T)) {
    store_entries(to, v, count);
  } else {
    for (index_t lane = 0; lane < std::min<index_t>(kLanes<T>, count); ++lane) to[lane] = static_cast<Out>(v[lane]);
  }
}

template <class T, class Out>
void store_inverse(const Call<Out>& call, index_t item, const PaddedSquare<T>& w, T poison, index_t row) {
  if (!call.W) return;
  Out* W = call.W + (item * call.size + row) * call.size;
  for (index_t j = 0; j < call.size; j += kLanes<T>) {
    store_result<Out, T>(W + j, load(w.row(row) + j) + poison, call.size - j);
  }
}

// W and Q = 2 W - I.
template <class T, class Out>
void write_padded(const Call<Out>& call, index_t item, const PaddedSquare<T>& w, T poison, int threads) {
  const index_t size = call.size;
  parallel_team(threads, [&](Team team) {
    own_rows(size, team, [&](index_t i) {
      store_inverse(call, item, w, poison, i);
      T* in = w.row(i);
      in[i] -= T(0.5);
      Out* Q = call.Q + (item * size + i) * size;
      for (index_t j = 0; j < size; j += kLanes<T>) {
        store_result<Out, T>(Q + j, 2 * load(in + j) + poison, size - j);
      }
    });
  });
}

// W, B W and 2 B W - B.
template <class T, class Out>
void multiply_base(const Call<Out>& call, index_t item, const PaddedSquare<T>& w, T poison, int threads) {
  const index_t size = call.size, first = item * size * size;
  Workspace workspace;
  const auto product = PaddedSquare<T>::take(size, workspace);
  const bool in_place =
      sizeof(T) == sizeof(Out) && call.base->step(-1) == 1 && size % std::max<index_t>(kLanes<T>, kTileRows) == 0;
  void* given = const_cast<void*>(batch_item(*call.base, 2, item));
  const auto base = in_place ? PaddedSquare<T>{static_cast<T*>(given), size, call.base->step(-2)}
                             : PaddedSquare<T>::take(size, workspace);
  parallel_team(threads, [&](Team team) {
    own_rows(size, team, [&](index_t i) { store_inverse(call, item, w, poison, i); });
    if (!in_place) copy_matrix(*call.base, item, base, team);
    team.barrier();
    multiply_through(product, base.data, base.step, 1, w, team, [&](index_t row, index_t column, auto& sums) {
      for (index_t i = row; i < std::min(row + kTileRows, size); ++i) {
        const index_t start = first + i * size;
        index_t j = column;
        for (Vec<T> sum : sums[i - row]) {
          if (j >= size) break;
          if (call.turned) store_result<Out, T>(call.turned + start + j, sum + poison, size - j);
          store_result<Out, T>(call.Q + start + j, 2 * sum - load(base.row(i) + j) + poison, size - j);
          j += kLanes<T>;
        }
      }
    });
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
  write_padded(call, item, w, poison, threads);
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
    run(Call<T>{A, Q.ptr<T>(), entries<T>(W), A.size(-1), batch_count(A, 2), SkewStorage::kTriangle, in.base,
                entries<T>(turned)},
        threads);
  });
}

void cayley_of_packed_cpu(const TensorView& a, const TensorView& Q, const TensorView* W, int threads) {
  if (Q.numel() == 0) return;
  dispatch_float(compute_dtype(a.dtype), "cayley", [&](auto tag) {
    using T = typename decltype(tag)::type;
    run(Call<T>{a, Q.ptr<T>(), entries<T>(W), Q.size(-1), batch_count(a, 2), SkewStorage::kPacked}, threads);
  });
}

}  // namespace subspan
