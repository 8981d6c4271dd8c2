#include "core/dispatch.h"
#include "core/small_matrix/interleave.h"
#include "core/small_matrix/square_sets.h"
#include "ops/orthogonal/skew_expm.h"

namespace subspan {
namespace {

// Pade approximants of degrees 5 and 7: of an argument of this spectral norm their error is half a rounding (Higham
// 2005, The scaling and squaring method for the matrix exponential revisited, table 2.3), and V is positive definite.
template <class T>
struct Pade;
template <>
struct Pade<float> {
  static constexpr double coefficients[] = {30240, 15120, 3360, 420, 30, 1};
  static constexpr int degree = 5;
  static constexpr double reach = 1.88;
  static constexpr int commutators = 10;  // 1 / 11! for the first that is left out, where the norm of c is at most 1
};
template <>
struct Pade<double> {
  static constexpr double coefficients[] = {17297280, 8648640, 1995840, 277200, 25200, 1512, 56, 1};
  static constexpr int degree = 7;
  static constexpr double reach = 0.95;
  static constexpr int commutators = 17;
};

// How often 2 divides `norm` until it is at most `reach`; 0 for NaN.
inline int halvings(double norm, double reach) {
  if (!(norm > reach) || norm > std::numeric_limits<double>::max()) return 0;
  return static_cast<int>(std::ceil(std::log2(norm / reach)));
}

// --- a number for every lane, or one ----------------------------------------------------------------------------

template <class T>
constexpr int lanes_of(const Vec<T>&) {
  return kLanes<T>;
}
inline float lane(float value, int) { return value; }
inline double lane(double value, int) { return value; }
inline float lane(Vec<float> value, int i) { return value[i]; }
inline double lane(Vec<double> value, int i) { return value[i]; }
inline void set_lane(float& value, int, double number) { value = static_cast<float>(number); }
inline void set_lane(double& value, int, double number) { value = number; }
inline void set_lane(Vec<float>& value, int i, double number) { value[i] = static_cast<float>(number); }
inline void set_lane(Vec<double>& value, int i, double number) { value[i] = number; }
template <class Entry>
constexpr int kCount = 1;
template <>
inline constexpr int kCount<Vec<float>> = kLanes<float>;
template <>
inline constexpr int kCount<Vec<double>> = kLanes<double>;

template <class T, class Squares>
class Exponential {
 public:
  using Entry = typename Squares::Entry;
  explicit Exponential(const Squares& squares) : squares_(squares) {}

  // Q = exp K. K is scaled; it is kept as large as the approximant allows.
  void run(Entry* K, Entry* Q) {
    const Entry norm = row_sum_norm(squares_, K);
    Entry factor{}, steps{};
    for (int i = 0; i < kCount<Entry>; ++i) {
      const int own = halvings(lane(norm, i), Pade<T>::reach);
      set_lane(steps, i, own);
      set_lane(factor, i, std::ldexp(1.0, -own));
    }
    scale(K, factor);
    Entry* square = squares_.take();
    squares_.multiply(square, K, K);
    // A closer bound: the square of the spectral norm is not above the norm of K^2.
    const Entry bound = row_sum_norm(squares_, square);
    for (int i = 0; i < kCount<Entry>; ++i) {
      const double spectral = std::sqrt(static_cast<double>(lane(bound, i)));
      const int most = static_cast<int>(lane(steps, i));
      const int spare = spectral > 0 ? static_cast<int>(std::floor(std::log2(Pade<T>::reach / spectral))) : most;
      const int back = std::clamp(spare, 0, most);
      set_lane(steps, i, most - back);
      set_lane(factor, i, std::ldexp(1.0, back));
    }
    scale(K, factor);
    scale(square, factor * factor);
    approximant(K, square, Q);
    square_repeatedly(Q, steps, square);
  }

  // As run where no squaring is needed; K is left alone.
  void run_once(Entry* K, Entry* Q) {
    if (!square_) square_ = squares_.take();
    squares_.multiply(square_, K, K);
    approximant(K, square_, Q);
  }

 private:
  void scale(Entry* a, Entry factor) const {
    for (index_t e = 0; e < squares_.elements; ++e) a[e] *= factor;
  }

  // (V - U)^-1 (V + U) = 2 (V - U)^-1 V - I
  void approximant(Entry* K, Entry* square, Entry* Q) {
    using P = Pade<T>;
    Entry *fourth = squares_.take(), *V = squares_.take(), *odd = squares_.take(), *U = squares_.take();
    squares_.multiply(fourth, square, square);
    const auto c = [](int i) { return static_cast<T>(P::coefficients[i] / P::coefficients[0]); };
    for (index_t e = 0; e < squares_.elements; ++e) {
      V[e] = c(2) * square[e] + c(4) * fourth[e];
      odd[e] = c(3) * square[e] + c(5) * fourth[e];
    }
    if constexpr (P::degree == 7) {
      squares_.multiply(U, fourth, square);
      for (index_t e = 0; e < squares_.elements; ++e) {
        V[e] += c(6) * U[e];
        odd[e] += c(7) * U[e];
      }
    }
    add_to_diagonal(squares_, V, Entry{} + 1);
    add_to_diagonal(squares_, odd, Entry{} + c(1));
    squares_.multiply(U, K, odd);
    for (index_t e = 0; e < squares_.elements; ++e) U[e] = V[e] - U[e];
    squares_.invert(U);
    squares_.multiply(Q, U, V);
    for (index_t e = 0; e < squares_.elements; ++e) Q[e] *= 2;
    add_to_diagonal(squares_, Q, Entry{} - 1);
  }

  // Each lane as often as its own count says, made orthogonal after every fourth time and at the end.
  void square_repeatedly(Entry* Q, Entry steps, Entry* work) {
    int most = 0;
    for (int i = 0; i < kCount<Entry>; ++i) most = std::max(most, static_cast<int>(lane(steps, i)));
    if (most == 0) return;
    Entry* gram = squares_.take();
    for (int step = 0; step < most; ++step) {
      squares_.multiply(work, Q, Q);
      assign_where(steps > static_cast<T>(step), Q, work);
      if (step % 4 == 3) polish(Q, steps > static_cast<T>(step), gram, work);
    }
    polish(Q, steps > T(0), gram, work);
  }

  template <class Condition>
  void polish(Entry* Q, Condition where, Entry* gram, Entry* work) {
    squares_.multiply(gram, Q, Q, true);
    for (index_t e = 0; e < squares_.elements; ++e) gram[e] *= T(-0.5);
    add_to_diagonal(squares_, gram, Entry{} + T(1.5));
    squares_.multiply(work, Q, gram);
    assign_where(where, Q, work);
  }

  template <class Condition>
  void assign_where(Condition where, Entry* to, const Entry* from) const {
    for (index_t e = 0; e < squares_.elements; ++e) to[e] = where ? from[e] : to[e];
  }

  const Squares& squares_;
  Entry* square_ = nullptr;
};

// d_A into N, which comes as N; K is scaled.
template <class T, class Squares>
void integrate(const Squares& squares, typename Squares::Entry* K, typename Squares::Entry* N) {
  using Entry = typename Squares::Entry;
  const Entry norm = row_sum_norm(squares, K);
  Entry factor{}, steps{};
  int most = 0;
  for (int i = 0; i < kCount<Entry>; ++i) {
    const int own = halvings(lane(norm, i), 0.5);  // the commutator's norm is at most twice that
    most = std::max(most, own);
    set_lane(steps, i, own);
    set_lane(factor, i, std::ldexp(1.0, -own));
  }
  for (index_t e = 0; e < squares.elements; ++e) K[e] *= factor;
  Entry *J = squares.take(), *P = squares.take();
  std::copy_n(N, squares.elements, J);
  for (int m = Pade<T>::commutators; m > 0; --m) {
    squares.multiply(P, K, J);
    keep_skew_part(squares, P, Entry{} + T(1) / static_cast<T>(m + 1));
    for (index_t e = 0; e < squares.elements; ++e) J[e] = N[e] + P[e];
  }
  std::copy_n(J, squares.elements, N);
  if (most == 0) return;
  Entry *Q = squares.take(), *turned = squares.take();
  Exponential<T, Squares>(squares).run_once(K, Q);
  for (int step = 0; step < most; ++step) {
    // Q J Q^T = -Q (Q J)^T, since it is skew.
    squares.multiply(P, Q, N);
    for (index_t i = 0; i < squares.size; ++i) {
      for (index_t j = 0; j < squares.size; ++j) J[j * squares.step + i] = P[i * squares.step + j];
    }
    squares.multiply(turned, Q, J);
    const auto active = steps > static_cast<T>(step);
    for (index_t e = 0; e < squares.elements; ++e) N[e] = active ? (N[e] - turned[e]) * T(0.5) : N[e];
    if (step + 1 == most) break;
    squares.multiply(P, Q, Q);
    std::swap(P, Q);
  }
  keep_skew_part(squares, N, Entry{} + T(0.5));
}

// --- in and out -------------------------------------------------------------------------------------------------

template <class T>
class Lanes {
 public:
  Lanes(index_t size, index_t index, index_t items, Workspace& workspace)
      : squares(size, workspace), group_(index, items) {}
  void load(const TensorView& view, Vec<T>* to) const { interleave<T>(view, group_, to, squares.size, 1); }
  void store(Vec<T>* from, T* out) const {
    deinterleave<T>(from, squares.size, 1, group_, squares.size, squares.size, out);
  }
  LaneSquares<T> squares;

 private:
  LaneGroup<T> group_;
};

template <class T>
class One {
 public:
  One(index_t size, index_t item, int threads, Workspace& workspace) : squares(size, threads, workspace), item_(item) {}
  void load(const TensorView& view, T* to) const {
    const Rows<T> rows(batch_item(view, 2, item_), view.dtype, view.step(-2), view.step(-1));
    for (index_t i = 0; i < squares.size; ++i) {
      T* row = to + i * squares.step;
      const T* in = rows.read(i, 0, squares.size, row);
      if (in != row) std::copy_n(in, squares.size, row);
    }
  }
  void store(const T* from, T* out) const {
    for (index_t i = 0; i < squares.size; ++i)
      std::copy_n(from + i * squares.step, squares.size, out + (item_ * squares.size + i) * squares.size);
  }
  PaddedSquares<T> squares;

 private:
  index_t item_;
};

// K, and NaN where an entry of A is not finite.
template <class Set, class Entry>
Entry load_skew(const Set& set, const TensorView& A, Entry* K) {
  set.load(A, K);
  Entry poison{};
  for (index_t e = 0; e < set.squares.elements; ++e) poison += K[e] * 0;
  keep_skew_part(set.squares, K, Entry{} + Entry{} + static_cast<decltype(lane(Entry{}, 0))>(0.5));
  return poison;
}

template <class Set, class Entry, class T>
void store_poisoned(const Set& set, Entry* result, Entry poison, T* out) {
  for (index_t e = 0; e < set.squares.elements; ++e) result[e] += poison;
  set.store(result, out);
}

template <class T, class Set>
void exponential(const Set& set, const TensorView& A, T* out) {
  auto *K = set.squares.take(), *Q = set.squares.take();
  const auto poison = load_skew(set, A, K);
  Exponential<T, std::decay_t<decltype(set.squares)>>(set.squares).run(K, Q);
  store_poisoned(set, Q, poison, out);
}

template <class T, class Set>
void gradient(const Set& set, const TensorView& A, const TensorView& Q, const TensorView& G, T* out) {
  auto *K = set.squares.take(), *N = set.squares.take(), *q = set.squares.take(), *g = set.squares.take();
  auto poison = load_skew(set, A, K);
  set.load(Q, q);
  set.load(G, g);
  for (index_t e = 0; e < set.squares.elements; ++e) poison += g[e] * 0;
  set.squares.multiply(N, q, g, true);
  keep_skew_part(set.squares, N, decltype(poison){} + static_cast<T>(0.5));
  integrate<T>(set.squares, K, N);
  store_poisoned(set, N, poison, out);
}

// The largest matrices that lie side by side in SIMD lanes.
constexpr index_t kInterleaved = 16;

// run(set) for the sets of all items.
template <class T, class Run>
void each_set(const TensorView& A, double products, int threads, Run&& run) {
  const index_t size = A.size(-1), items = batch_count(A, 2);
  const double flops = 2 * products * static_cast<double>(size * size) * static_cast<double>(size);
  const int useful = useful_threads(flops * static_cast<double>(items), threads);
  if (size <= kTinyPivots || (size <= kInterleaved && 4 * items >= kLanes<T>)) {
    parallel_for(lane_groups<T>(items), useful, [&](index_t index) {
      Workspace workspace;
      run(Lanes<T>(size, index, items, workspace));
    });
  } else if (items >= threads) {
    parallel_for(items, useful, [&](index_t item) {
      Workspace workspace;
      run(One<T>(size, item, 1, workspace));
    });
  } else {
    for (index_t item = 0; item < items; ++item) {
      Workspace workspace;
      run(One<T>(size, item, useful_threads(flops / (8 * products), threads), workspace));
    }
  }
}

}  // namespace

void skew_expm_cpu(const TensorView& A, const TensorView& Q, int threads) {
  if (A.numel() == 0) return;
  dispatch_float(Q.dtype, "skew_expm", [&](auto tag) {
    using T = typename decltype(tag)::type;
    each_set<T>(A, 8, threads, [&](const auto& set) { exponential<T>(set, A, Q.ptr<T>()); });
  });
}

void skew_expm_gradient_cpu(const TensorView& A, const TensorView& Q, const TensorView& G, const TensorView& d_A,
                            int threads) {
  if (A.numel() == 0) return;
  dispatch_float(d_A.dtype, "skew_expm_gradient", [&](auto tag) {
    using T = typename decltype(tag)::type;
    each_set<T>(A, 24, threads, [&](const auto& set) { gradient<T>(set, A, Q, G, d_A.ptr<T>()); });
  });
}

}  // namespace subspan
