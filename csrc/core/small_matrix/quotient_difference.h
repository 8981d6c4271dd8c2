// Eigenvalues of B^T B for upper bidiagonal B, hence singular values of B and eigenvalues of positive semidefinite
// tridiagonal matrices, one matrix per SIMD lane, by differential quotient-difference transforms with shifts
// (Fernando, Parlett 1994).
//
// A transform also sums S1 = sum 1 / (lambda_i - s) and S2 = sum 1 / (lambda_i - s)^2 by the derivatives of its pivots,
// all terms of which are positive. Laguerre's bound of the smallest eigenvalue by these sums is the next shift: it does
// not pass the eigenvalue, and it converges cubically from wherever it starts, so that lanes take about as many
// transforms as their neighbours.
//
// Eigenvalues leave at the end. The lane's other entries move up by one and leave a huge one in front, after which a
// transform starts as after nothing: lanes that are ahead of others need no masks. Couplings that became negligible are
// set to zero, which divides a matrix without further care. What a lane computes does not depend on its neighbours.
#pragma once
#include <limits>

#include "core/workspace.h"

namespace subspan {

// What errors of eigenvalues are judged by, beside the largest: themselves, or what they do to the square roots.
enum class Judged { kPlain, kRoots };

namespace qd {

constexpr int kGroups = 4;  // vectors of lanes treated together: their quotients overlap

template <class T>
struct Constant {
  static constexpr bool kFloat = sizeof(T) == 4;
  static constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
  static constexpr T kTolerance = kEpsilon / 2;
  static constexpr T kSafe = 1 - 16 * kEpsilon;                   // of a bound that is exact but for rounding
  static constexpr T kLeast = kFloat ? T(0x1p-62) : T(0x1p-400);  // smaller pivots are zero
  static constexpr T kUnit = kFloat ? T(0x1p-8) : T(1);           // of S1, lest S2 overflow
  // The entry in front of a lane's. As a power of two it leaves the quotients and products with it exact, and what all
  // of them add to S1 and S2 is lost in rounding the first proper term, while their number times the largest eigenvalue
  // is below 2^30.
  static constexpr T kFront = kFloat ? T(0x1p55) : T(0x1p200);
  // Its coupling, which stays from one such entry to the next and is negligible before a proper one.
  static constexpr T kFrontCoupling = 1;
};

// What a lane knows about itself between transforms.
template <class T>
struct State {
  Vec<T> largest;       // of the eigenvalues, up to a factor of 4
  Vec<T> negligible;    // couplings below this are zero
  Vec<T> shift;         // of the next transform
  Vec<T> total, error;  // the shifts so far, and what rounding took from their sum
  Vec<T> left;          // eigenvalues not yet found
  Mask<T> removed;      // eigenvalues found: as many huge entries are in front
  Mask<T> moves;        // lanes whose entries move up by one in the next transform
};

// What a transform has seen.
template <class T>
struct Seen {
  Vec<T> least;                  // the smallest pivot
  Vec<T> last, coupling;         // the last pivot, and what couples it to the others
  Vec<T> first, second;          // S1 and S2, in units of kUnit and its square
  Vec<T> first_but, second_but;  // without the last entry
  Vec<T> loosest;                // zero if an entry other than the last is coupled to none
};

// The pivots q and couplings e of all groups, [entry][group].
template <class T>
struct Entries {
  Vec<T>*q, *e;

  // With one more in front, which a transform needs for itself.
  static Entries take(index_t count, Workspace& workspace) {
    Vec<T>* q = workspace.take<Vec<T>>((count + 1) * kGroups);
    Vec<T>* e = workspace.take<Vec<T>>((count + 1) * kGroups);
    return {q + kGroups, e + kGroups};
  }
  // Fills a group that is not there with what is not computed on.
  void leave_out(index_t group, index_t count) const {
    for (index_t i = 0; i < count; ++i) {
      q[i * kGroups + group] = broadcast(std::numeric_limits<T>::quiet_NaN());
      e[i * kGroups + group] = Vec<T>{};
    }
  }
};

template <class T>
inline Mask<T> everywhere(index_t value) {
  return Mask<T>{} + static_cast<decltype(Mask<T>{}[0] + 0)>(value);
}

template <class T>
inline Vec<T> larger(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}
template <class T>
inline Vec<T> smaller(Vec<T> a, Vec<T> b) {
  return a < b ? a : b;
}

// One transform of entries `begin` ... count - 1.
template <class T>
void transform(const Entries<T>& from, const Entries<T>& to, index_t begin, index_t count, const State<T>* states,
               Seen<T>* seen) {
  using K = Constant<T>;
  // After the entry in front the running quantities are those of nothing.
  Vec<T> pivot[kGroups], inverse[kGroups], e_before[kGroups], kept_before[kGroups], least[kGroups], loosest[kGroups];
  Vec<T> slope[kGroups], term[kGroups], bend[kGroups], first[kGroups], squares[kGroups], bends[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    // Where entries move up, the one that becomes the first was at begin - 1, if none but the last to leave was there.
    Vec<T>&q = from.q[(begin - 1) * kGroups + g], &e = from.e[(begin - 1) * kGroups + g];
    const Mask<T> front = states[g].removed + states[g].moves >= everywhere<T>(begin);
    q = front ? broadcast(K::kFront) : q;
    e = front ? broadcast(K::kFrontCoupling) : e;
    pivot[g] = least[g] = broadcast(K::kFront);
    inverse[g] = broadcast(1 / K::kFront);
    e_before[g] = kept_before[g] = loosest[g] = broadcast(K::kFrontCoupling);
    slope[g] = broadcast(K::kUnit);
    term[g] = bend[g] = first[g] = squares[g] = bends[g] = Vec<T>{};
  }
  const auto advance = [&](index_t i, int g, auto last) __attribute__((always_inline)) {
    const State<T>& state = states[g];
    const index_t here = i * kGroups + g, before = here - kGroups;
    const Vec<T> q = state.moves ? from.q[before] : from.q[here], e = state.moves ? from.e[before] : from.e[here];
    const Vec<T> ratio = q * inverse[g], coupling = e_before[g] * ratio;
    Vec<T> d = pivot[g] * ratio - state.shift;
    if (last.value) d += e;  // the coupling to the entry that has left
    least[g] = smaller<T>(least[g], d);
    pivot[g] = larger<T>(broadcast(K::kLeast), d);
    const Vec<T> whole = last.value ? pivot[g] : pivot[g] + e;
    const Vec<T> kept = coupling > state.negligible ? coupling : Vec<T>{};
    loosest[g] = smaller<T>(loosest[g], kept_before[g] + kept);
    // The derivative of the pivot by the shift is -slope, that of slope is 2 bend.
    const Vec<T> r = kept * inverse[g];
    bend[g] = r * (term[g] * slope[g] + bend[g]);
    slope[g] = r * slope[g] + K::kUnit;
    inverse[g] = 1 / whole;
    term[g] = slope[g] * inverse[g];
    first[g] += term[g];
    squares[g] += term[g] * term[g];
    bends[g] += bend[g] * inverse[g];
    to.q[here] = whole;
    to.e[before] = last.value ? coupling : kept;
    e_before[g] = e;
    kept_before[g] = kept;
    return coupling;
  };
  for (index_t i = begin; i < count - 1; ++i) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) advance(i, g, std::false_type{});
  }
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    seen[g].first_but = first[g];
    seen[g].second_but = squares[g] + 2 * bends[g];
    seen[g].coupling = advance(count - 1, g, std::true_type{});
    to.e[(count - 1) * kGroups + g] = Vec<T>{};
    seen[g].last = pivot[g];
    seen[g].least = least[g];
    seen[g].first = first[g];
    seen[g].second = squares[g] + 2 * bends[g];
    seen[g].loosest = loosest[g];
  }
}

// Laguerre's lower bound of the smallest of `count` positive numbers of which the sum of reciprocals is first / kUnit
// and that of their squares second / kUnit^2; NaN for none.
template <class T>
inline Vec<T> laguerre(Vec<T> count, Vec<T> first, Vec<T> second) {
  const Vec<T> spread = (count - 1) * (count * second - first * first);
  return Constant<T>::kUnit * Constant<T>::kSafe * count / (first + square_root(larger<T>(spread, Vec<T>{})));
}

// to[rows[lane] * kGroups][lane] = from[lane] for every lane.
template <class T>
inline void put(Vec<T>* to, Mask<T> rows, Vec<T> from) {
  decltype(Mask<T>{}[0] + 0) row[kLanes<T>];
  T value[kLanes<T>];
  std::memcpy(row, &rows, sizeof row);
  store(value, from);
  T* entries = reinterpret_cast<T*>(to);
  for (int lane = 0; lane < kLanes<T>; ++lane) entries[row[lane] * (kGroups * kLanes<T>)+lane] = value[lane];
}

// Takes lane `lane`'s entries that are coupled to none out of the middle.
template <class T>
void take_out(const Entries<T>& entries, index_t count, State<T>& state, int group, int lane, Vec<T>* values) {
  const auto q = [&](index_t i) -> T& { return reinterpret_cast<T*>(entries.q + i * kGroups + group)[lane]; };
  const auto e = [&](index_t i) -> T& { return reinterpret_cast<T*>(entries.e + i * kGroups + group)[lane]; };
  const index_t begin = static_cast<index_t>(state.removed[lane]);
  index_t found = begin, to = count;
  for (index_t i = count - 1; i >= begin; --i) {
    if (i < count - 1 && e(i) == 0 && (i == begin || e(i - 1) == 0)) {
      const T value = q(i) <= 2 * Constant<T>::kLeast ? T(0) : q(i);
      values[found++ * kGroups + group][lane] = state.total[lane] + (state.error[lane] + value);
    } else {
      --to;
      q(to) = q(i);
      e(to) = e(i);
    }
  }
  for (index_t i = begin; i < to; ++i) {
    q(i) = Constant<T>::kFront;
    e(i) = Constant<T>::kFrontCoupling;
  }
  state.left[lane] -= static_cast<T>(found - begin);
  state.removed[lane] += static_cast<decltype(state.removed[lane] + 0)>(found - begin);
}

// Sorts every lane of values[i * kGroups], in descending order; they ascend but for a few.
template <class T>
void sort_descending(Vec<T>* values, index_t count) {
  for (index_t i = 0; i < count / 2; ++i) std::swap(values[i * kGroups], values[(count - 1 - i) * kGroups]);
  Mask<T> exchanged = Vec<T>{} == 0;
  for (index_t end = count - 1; end > 0 && any<T>(exchanged); --end) {
    exchanged = Mask<T>{};
    for (index_t i = 0; i < end; ++i) {
      Vec<T>&a = values[i * kGroups], &b = values[(i + 1) * kGroups];
      const Mask<T> wrong = a < b;
      const Vec<T> upper = wrong ? b : a;
      b = wrong ? a : b;
      a = upper;
      exchanged |= wrong;
    }
  }
}

}  // namespace qd

// The eigenvalues of B^T B for kGroups groups of lanes: values[i * kGroups + group], descending, from the squares
// q[i * kGroups + group] of B's diagonal and e[...] of what is beside it (its last is not read), none beyond 1e8;
// errors are those beside a largest eigenvalue of at least 1/4. NaN where an entry is not finite or the iteration has
// not converged, which `unsettled` then says. q and e are destroyed, values has a row more than count.
template <Judged judged, class T>
void qd_interleaved(qd::Entries<T> entries, index_t count, Vec<T>* values, Mask<T>* unsettled) {
  using namespace qd;
  using K = Constant<T>;
  const index_t most = 20 * count + 40;
  Workspace workspace;
  Entries<T> from = entries, to = Entries<T>::take(count, workspace);
  State<T> states[kGroups];
  Seen<T> seen[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    State<T>& state = states[g];
    Vec<T> largest = broadcast(T(0.25)), poison{};
    from.e[(count - 1) * kGroups + g] = Vec<T>{};
    for (index_t i = 0; i < count; ++i) {
      const Vec<T> both = from.q[i * kGroups + g] + from.e[i * kGroups + g];
      largest = larger<T>(largest, both);
      poison += both * 0;
    }
    const Mask<T> finite = poison == 0;
    for (index_t i = 0; i < count; ++i) {
      from.q[i * kGroups + g] = finite ? from.q[i * kGroups + g] : broadcast(T(1));
      from.e[i * kGroups + g] = finite ? from.e[i * kGroups + g] : Vec<T>{};
      values[i * kGroups + g] = poison;
    }
    state.largest = largest;
    state.negligible = K::kTolerance * K::kTolerance * largest;
    state.shift = state.total = state.error = Vec<T>{};
    state.left = finite ? broadcast(static_cast<T>(count)) : Vec<T>{};
    state.removed = ~finite & everywhere<T>(count);
    state.moves = Mask<T>{};
    unsettled[g] = finite;
  }
  index_t begin = 0;
  for (index_t turn = 0; begin < count && turn < most; ++turn) {
    transform<T>(from, to, begin, count, states, seen);
    Mask<T> rejected[kGroups], stuck[kGroups], rare{};
    for (int g = 0; g < kGroups; ++g) {
      State<T>& state = states[g];
      const Seen<T>& s = seen[g];
      const Vec<T> total = state.total + state.shift, part = total - state.total;
      const Vec<T> error = state.error + ((state.total - (total - part)) + (state.shift - part));
      // Errors of an eigenvalue below `slack` are of no account.
      const Vec<T> slack = judged == Judged::kPlain
                               ? K::kTolerance / 2 * state.largest
                               : K::kTolerance / 2 * square_root(state.largest * (total + state.negligible));
      rejected[g] = unsettled[g] & (s.least < -slack);
      const Mask<T> good = unsettled[g] & ~rejected[g];
      state.total = good ? total : state.total;
      state.error = good ? error : state.error;
      // The last pivot q, coupled by g^2 = q e to a matrix whose eigenvalues are above `bound`, is closer to an
      // eigenvalue than g and than g^2 / (bound - q), and so are the others' eigenvalues to those without it (Mathias
      // 1998). That matrix is B B^T without its last row: e stays part of its last diagonal entry.
      const Vec<T> bound = laguerre<T>(state.left - 1, s.first_but, s.second_but);
      const Vec<T> next = laguerre<T>(state.left, s.first, s.second);
      const Vec<T> square = s.last * s.coupling;
      const Mask<T> found =
          good & ((s.coupling <= state.negligible) | (square <= slack * slack) | (square <= slack * (bound - s.last)));
      // With the last but one the rest is done.
      const Mask<T> done = found & (state.left <= 2), both = found & (state.left == 2);
      const Vec<T> value = s.last <= 2 * K::kLeast ? Vec<T>{} : s.last;
      put<T>(values + g, state.removed, state.total + (state.error + value));  // if not found yet, it is overwritten
      Vec<T>& largest = values[(count - 1) * kGroups + g];
      const Vec<T> rest = to.q[(count - 2) * kGroups + g] + s.coupling;
      largest = both ? state.total + (state.error + rest) : largest;
      const Vec<T> shift = found ? bound : next;
      state.shift = rejected[g] ? state.shift / 2 : (good & (shift > 0) & ~done) ? shift : Vec<T>{};
      state.moves = rejected[g] ? state.moves : found & ~done;
      state.removed -= found + both;
      state.left = found ? state.left - 1 : state.left;
      unsettled[g] &= ~done;
      stuck[g] = good & ~found & (s.loosest == 0);
      rare |= rejected[g] | stuck[g];
    }
    if (any<T>(rare)) {
      for (int g = 0; g < kGroups; ++g) {
        for (index_t i = (begin - 1) * kGroups + g; i < count * kGroups; i += kGroups) {
          to.q[i] = rejected[g] ? from.q[i] : to.q[i];
          to.e[i] = rejected[g] ? from.e[i] : to.e[i];
        }
        for (int lane = 0; lane < kLanes<T>; ++lane) {
          if (stuck[g][lane]) take_out<T>(to, count, states[g], g, lane, values);
        }
      }
    }
    std::swap(from, to);
    const auto all_behind = [&] {
      Mask<T> present{};
      for (int g = 0; g < kGroups; ++g) present |= states[g].removed <= everywhere<T>(begin);
      return !any<T>(present);
    };
    while (begin < count && all_behind()) ++begin;
  }
  for (int g = 0; g < kGroups; ++g) {
    sort_descending<T>(values + g, count);
    const Vec<T> none = broadcast(std::numeric_limits<T>::quiet_NaN());
    for (index_t i = 0; i < count; ++i) values[i * kGroups + g] = unsettled[g] ? none : values[i * kGroups + g];
  }
}

}  // namespace subspan
