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

constexpr int kGroups = 2;  // vectors of lanes treated together: one's quotients hide the other's

template <class T>
struct Constant {
  static constexpr bool kFloat = sizeof(T) == 4;
  static constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
  static constexpr T kTolerance = kEpsilon / 2;
  static constexpr T kSafe = 1 - 16 * kEpsilon;                   // of a bound that is exact but for rounding
  static constexpr T kFront = kFloat ? T(0x1p60) : T(0x1p200);    // a power of two: dividing by it is exact
  static constexpr T kLeast = kFloat ? T(0x1p-70) : T(0x1p-400);  // smaller pivots are zero
  static constexpr T kUnit = kFloat ? T(0x1p-23) : T(1);          // of S1, lest S2 overflow
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
  Mask<T> moves;        // of the lane's entries by one in the next transform
};

// What a transform has seen.
template <class T>
struct Seen {
  Vec<T> least;                  // the smallest pivot
  Vec<T> last, coupling;         // the last pivot, and what couples it to the others
  Vec<T> first, second;          // S1 and S2
  Vec<T> first_but, second_but;  // without the last entry
  Mask<T> alone;                 // minus the number of entries coupled to none, but for the last entry
};

// The pivots q and couplings e of both groups, [entry][group].
template <class T>
struct Entries {
  Vec<T>*q, *e;

  static Entries take(index_t count, Workspace& workspace) {
    // One more in front, which a transform may read and write without a meaning.
    return {workspace.take<Vec<T>>((count + 1) * kGroups) + kGroups,
            workspace.take<Vec<T>>((count + 1) * kGroups) + kGroups};
  }
};

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
  Vec<T> q_before[kGroups], e_before[kGroups], e_last[kGroups], pivot[kGroups], inverse[kGroups], least[kGroups];
  Vec<T> term[kGroups], slope[kGroups], bend[kGroups], first[kGroups], second[kGroups];
  Mask<T> apart[kGroups], alone[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    const State<T>& state = states[g];
    const Mask<T> front = state.removed + state.moves >= Mask<T>{} + static_cast<decltype(Mask<T>{}[0] + 0)>(begin);
    q_before[g] = front ? broadcast(K::kFront) : from.q[(begin - 1) * kGroups + g];
    e_before[g] = front ? Vec<T>{} : from.e[(begin - 1) * kGroups + g];
    e_last[g] = Vec<T>{};
    pivot[g] = least[g] = broadcast(K::kFront);
    inverse[g] = broadcast(1 / K::kFront);
    term[g] = bend[g] = first[g] = second[g] = Vec<T>{};
    slope[g] = broadcast(K::kUnit);
    apart[g] = Vec<T>{} == 0;
    alone[g] = Mask<T>{} + 1;  // what is in front of them all does not count
  }
  // Up to the new pivot: returns the coupling before it.
  const auto advance = [&](index_t i, int g, auto last) [[gnu::always_inline]] {
    const State<T>& state = states[g];
    const Vec<T> q_here = from.q[i * kGroups + g], e_here = from.e[i * kGroups + g];
    const Vec<T> q = state.moves ? q_before[g] : q_here, e = state.moves ? e_before[g] : e_here;
    q_before[g] = q_here;
    e_before[g] = e_here;
    const Vec<T> ratio = q * inverse[g];
    const Vec<T> coupling = e_last[g] * ratio;
    e_last[g] = e;
    Vec<T> d = pivot[g] * ratio - state.shift;
    if (last.value) d += e;  // the coupling to an entry that has left
    least[g] = smaller<T>(least[g], d);
    d = larger<T>(d, broadcast(K::kLeast));
    const Mask<T> zero = coupling <= state.negligible;
    const Vec<T> kept = zero ? Vec<T>{} : coupling;
    alone[g] += zero & apart[g];
    apart[g] = zero;
    // Derivatives of the pivot by the shift: -slope and, of the slope, bend.
    const Vec<T> r = kept * inverse[g];
    bend[g] = r * (2 * term[g] * slope[g] + bend[g]);
    slope[g] = r * slope[g] + K::kUnit;
    pivot[g] = d;
    const Vec<T> whole = last.value ? d : d + e;
    inverse[g] = 1 / whole;
    to.q[i * kGroups + g] = whole;
    to.e[(i - 1) * kGroups + g] = last.value ? coupling : kept;
    return coupling;
  };
  const auto sum = [&](index_t i, int g) [[gnu::always_inline]] {
    const Mask<T> present = Mask<T>{} + static_cast<decltype(Mask<T>{}[0] + 0)>(i) >= states[g].removed;
    term[g] = present ? slope[g] * inverse[g] : Vec<T>{};
    first[g] += term[g];
    second[g] += term[g] * term[g] + bend[g] * inverse[g];
  };
  for (index_t i = begin; i < count - 1; ++i) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      advance(i, g, std::false_type{});
      sum(i, g);
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    seen[g].first_but = first[g];
    seen[g].second_but = second[g];
    seen[g].coupling = advance(count - 1, g, std::true_type{});
    sum(count - 1, g);
    to.e[(count - 1) * kGroups + g] = Vec<T>{};
    seen[g].last = pivot[g];
    seen[g].least = least[g];
    seen[g].first = first[g];
    seen[g].second = second[g];
    seen[g].alone = alone[g];
  }
}

// Laguerre's lower bound of the smallest of `count` positive numbers of which the sum of reciprocals is first / kUnit
// and that of their squares second / kUnit^2; NaN for none.
template <class T>
inline Vec<T> laguerre(Vec<T> count, Vec<T> first, Vec<T> second) {
  const Vec<T> spread = (count - 1) * (count * second - first * first);
  return Constant<T>::kUnit * Constant<T>::kSafe * count / (first + square_root(larger<T>(spread, Vec<T>{})));
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
    e(i) = 0;
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
// q[i * kGroups + group] of B's diagonal and e[...] of what is beside it (its last is not read), largest between 1/4
// and 1e8 or all zero. NaN where an entry is not finite. q and e are destroyed, values has a row more than count. Gives
// the lanes that have not converged in `unsettled`.
template <Judged judged, class T>
void qd_interleaved(qd::Entries<T> entries, index_t count, Vec<T>* values, Mask<T>* unsettled) {
  using namespace qd;
  using K = Constant<T>;
  using Integer = decltype(Mask<T>{}[0] + 0);
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
    state.removed = ~finite & (Mask<T>{} + static_cast<Integer>(count));
    state.moves = Mask<T>{};
    unsettled[g] = finite;
  }
  const index_t most = 20 * count + 40;
  index_t begin = 0;
  for (index_t turn = 0; turn < most; ++turn) {
    Mask<T> busy{};
    for (int g = 0; g < kGroups; ++g) busy |= unsettled[g];
    if (!any<T>(busy)) break;
    transform<T>(from, to, begin, count, states, seen);
    Mask<T> rare{};
    Mask<T> rejected[kGroups], stuck[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      State<T>& state = states[g];
      const Seen<T>& s = seen[g];
      const Mask<T> active = unsettled[g];
      const Vec<T> total = state.total + state.shift, part = total - state.total;
      const Vec<T> error = state.error + ((state.total - (total - part)) + (state.shift - part));
      // Errors of an eigenvalue below `slack` are of no account.
      const Vec<T> slack = judged == Judged::kPlain
                               ? K::kTolerance / 2 * state.largest
                               : K::kTolerance / 2 * square_root(state.largest * (total + state.negligible));
      rejected[g] = active & (s.least < -slack);
      const Mask<T> good = active & ~rejected[g];
      state.total = good ? total : state.total;
      state.error = good ? error : state.error;
      // The last pivot q, coupled by g^2 = q e to a matrix whose eigenvalues are above `bound`, is closer to an
      // eigenvalue than g and than g^2 / (bound - q), and so are the others' eigenvalues to those without it.
      const Vec<T> bound = laguerre<T>(state.left - 1, s.first_but, s.second_but);
      const Vec<T> square = s.last * s.coupling;
      const Mask<T> found =
          good & ((s.coupling <= state.negligible) | (square <= slack * slack) | (square <= slack * (bound - s.last)));
      const Vec<T> next = laguerre<T>(state.left, s.first, s.second);
      const Vec<T> shift = found ? bound : next;
      const Vec<T> value = state.total + (state.error + (s.last <= 2 * K::kLeast ? Vec<T>{} : s.last));
      const Vec<T> before = state.total + (state.error + (to.q[(count - 2) * kGroups + g] + s.coupling));
      // With the last but one the rest is done.
      const Mask<T> done = found & (state.left <= 2), both = found & (state.left == 2);
      for (int lane = 0; lane < kLanes<T>; ++lane) {  // what is not found yet will be written over
        values[static_cast<index_t>(state.removed[lane]) * kGroups + g][lane] = value[lane];
      }
      for (int lane = 0; any<T>(both) && lane < kLanes<T>; ++lane) {
        if (both[lane]) values[(count - 1) * kGroups + g][lane] = before[lane];
      }
      state.shift = rejected[g] ? state.shift / 2 : (good & (shift > 0) & ~done) ? shift : Vec<T>{};
      state.moves = rejected[g] ? state.moves : found & ~done;
      state.removed -= found + both;
      state.left = found ? state.left - 1 : state.left;
      unsettled[g] &= ~done;
      stuck[g] = good & ~found & (-s.alone > state.removed - static_cast<Integer>(begin));
      rare |= rejected[g] | stuck[g];
    }
    if (any<T>(rare)) {
      for (int g = 0; g < kGroups; ++g) {
        for (index_t i = begin - 1; i < count; ++i) {
          Vec<T>&q = to.q[i * kGroups + g], &e = to.e[i * kGroups + g];
          q = rejected[g] ? from.q[i * kGroups + g] : q;
          e = rejected[g] ? from.e[i * kGroups + g] : e;
        }
        for (int lane = 0; lane < kLanes<T>; ++lane) {
          if (stuck[g][lane]) take_out<T>(to, count, states[g], g, lane, values);
        }
      }
    }
    std::swap(from, to);
    const auto gone = [&] {
      Mask<T> present{};
      for (int g = 0; g < kGroups; ++g) present |= states[g].removed <= static_cast<Integer>(begin);
      return !any<T>(present);
    };
    while (begin < count && gone()) ++begin;
  }
  for (int g = 0; g < kGroups; ++g) {
    sort_descending<T>(values + g, count);
  }
}

}  // namespace subspan
