// Jacobi's methods on small matrices, one matrix per SIMD lane: the singular value decomposition by one-sided rotations
// and the eigen-decomposition of symmetric matrices by two-sided ones.
//
// Pairs of columns are taken round-robin, so that the rotations of a step touch different columns and their long chains
// of square roots overlap. A lane rotates only where its own pair is not yet orthogonal: what it computes does not
// depend on the matrices beside it.
#pragma once
#include "core/small_matrix/jacobi_constants.h"
#include "core/workspace.h"

namespace subspan {

// Steps of disjoint pairs (first < second) in which every pair of `count` columns meets once.
class RoundRobin {
 public:
  RoundRobin(index_t count, Workspace& workspace) {
    const index_t seats = count + count % 2;  // the last seat is empty for an odd count
    steps_ = std::max<index_t>(seats - 1, 0);
    starts_ = workspace.take<index_t>(steps_ + 1);
    pairs_ = workspace.take<Pair>(steps_ * seats / 2);
    index_t next = 0;
    for (index_t step = 0; step < steps_; ++step) {
      starts_[step] = next;
      for (index_t seat = 0; seat < seats / 2; ++seat) {  // the circle method: seat 0 stays, the others move on
        const index_t a = sitting(seat, step, seats), b = sitting(seats - 1 - seat, step, seats);
        if (std::max(a, b) < count) pairs_[next++] = {std::min(a, b), std::max(a, b)};
      }
    }
    starts_[steps_] = next;
  }

  struct Pair {
    index_t first, second;
  };
  index_t steps() const { return steps_; }
  const Pair* begin(index_t step) const { return pairs_ + starts_[step]; }
  const Pair* end(index_t step) const { return pairs_ + starts_[step + 1]; }

 private:
  static index_t sitting(index_t seat, index_t step, index_t seats) {
    return seat == 0 ? 0 : 1 + (seat - 1 + step) % (seats - 1);
  }
  index_t steps_;
  index_t* starts_;
  Pair* pairs_;
};

namespace jacobi {

// Pairs rotated together: enough to hide the latency of square roots, few enough to stay in the first cache.
constexpr int kTogether = 4;

template <class T>
inline Vec<T> absolute(Vec<T> v) {
  return v < 0 ? -v : v;
}

// The rotation that makes columns of squared norms a and b and product g orthogonal, [p q] -> [c p - s q, s p + c q],
// by the smaller of its two angles. The arguments become the new squared norms.
template <class T>
inline void rotation(Vec<T>& a, Vec<T>& b, Vec<T> g, Mask<T> wanted, Vec<T>& cosine, Vec<T>& sine) {
  const Vec<T> difference = b - a;
  const Vec<T> square = difference * difference + 4 * g * g + kTiny<T>;
  const Vec<T> longer = absolute<T>(difference) + square * inverse_square_root(square);
  const Vec<T> root = inverse_square_root(longer);
  Vec<T> tangent = 2 * g * root * root;
  tangent = difference < 0 ? -tangent : tangent;
  tangent = wanted ? tangent : Vec<T>{};
  cosine = inverse_square_root(tangent * tangent + 1);
  cosine = wanted ? cosine : broadcast(T(1));
  sine = cosine * tangent;
  a -= tangent * g;
  b += tangent * g;
}

// [p q] -> [c p - s q, s p + c q] for two columns of `count` entries.
template <class T>
inline void rotate(Vec<T>* p, Vec<T>* q, index_t count, index_t step, Vec<T> c, Vec<T> s) {
  for (index_t i = 0; i < count; ++i) {
    const Vec<T> x = p[i * step], y = q[i * step];
    p[i * step] = c * x - s * y;
    q[i * step] = s * x + c * y;
  }
}

template <class T>
inline Vec<T> dot(const Vec<T>* p, const Vec<T>* q, index_t count) {
  Vec<T> even{}, odd{};
  index_t i = 0;
  for (; i + 2 <= count; i += 2) {
    even += p[i] * q[i];
    odd += p[i + 1] * q[i + 1];
  }
  if (i < count) even += p[i] * q[i];
  return even + odd;
}

}  // namespace jacobi

// X = U diag(values) V^T for kLanes matrices of `count` columns and `rows` >= count rows, entry (r, c) of all of them
// at x[c * rows + r], the largest between 1 and 2 in absolute value. x becomes U diag(values): columns orthogonal to
// rounding relative to their norms (but see kNegligible), longest first. right[c * count + i] becomes entry (i, c) of V
// unless null. Gives the lanes that have not converged.
template <class T>
Mask<T> svd_interleaved(Vec<T>* x, index_t rows, index_t count, Vec<T>* right, Vec<T>* values) {
  using namespace jacobi;
  Workspace workspace;
  const RoundRobin schedule(count, workspace);
  if (right) {
    for (index_t i = 0; i < count * count; ++i) right[i] = Vec<T>{};
    for (index_t i = 0; i < count; ++i) right[i * count + i] = broadcast(T(1));
  }
  const T tolerance = std::numeric_limits<T>::epsilon() * std::sqrt(static_cast<T>(std::max<index_t>(rows, 4)));
  const Vec<T> threshold = broadcast(tolerance * tolerance);
  const Vec<T> negligible = broadcast(kNegligible<T> * kNegligible<T>);
  Vec<T>* squares = values;
  Mask<T> unsettled{};
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    for (index_t c = 0; c < count; ++c) squares[c] = dot<T>(x + c * rows, x + c * rows, rows);
    unsettled = Mask<T>{};
    for (index_t step = 0; step < schedule.steps(); ++step) {
      for (auto pair = schedule.begin(step); pair < schedule.end(step); pair += kTogether) {
        const int together = static_cast<int>(std::min<index_t>(kTogether, schedule.end(step) - pair));
        Vec<T> cosine[kTogether], sine[kTogether];
        Mask<T> changed{};
        for (int j = 0; j < together; ++j)
          cosine[j] = dot<T>(x + pair[j].first * rows, x + pair[j].second * rows, rows);
        for (int j = 0; j < together; ++j) {
          Vec<T>&a = squares[pair[j].first], &b = squares[pair[j].second];
          const Vec<T> g = cosine[j];
          const Vec<T> along = g * inverse_square_root(a + kTiny<T>);  // g^2 and a b may underflow
          const Mask<T> wanted = (along * along > threshold * b) & (a > negligible) & (b > negligible);
          rotation<T>(a, b, g, wanted, cosine[j], sine[j]);
          // Rotating by a further quarter turn sorts the columns at no cost.
          const Mask<T> exchange = b > a;
          const Vec<T> c = cosine[j], s = sine[j], longer = exchange ? b : a;
          cosine[j] = exchange ? s : c;
          sine[j] = exchange ? -c : s;
          b = exchange ? a : b;
          a = longer;
          changed |= wanted | exchange;
        }
        if (!any<T>(changed)) continue;
        unsettled |= changed;
        for (int j = 0; j < together; ++j) {
          const index_t p = pair[j].first, q = pair[j].second;
          rotate<T>(x + p * rows, x + q * rows, rows, 1, cosine[j], sine[j]);
          if (right) rotate<T>(right + p * count, right + q * count, count, 1, cosine[j], sine[j]);
        }
      }
    }
    if (!any<T>(unsettled)) break;
  }
  for (index_t c = 0; c < count; ++c) values[c] = square_root(dot<T>(x + c * rows, x + c * rows, rows));
  return unsettled;
}

// A = Q diag(values) Q^T for kLanes symmetric matrices, entry (r, c) at a[r * size + c], of which both triangles are
// read and destroyed; vectors[c * size + i] becomes entry (i, c) of Q unless null. Not sorted. To kNormwise an
// off-diagonal entry is zero when it is small beside the whole matrix; to kRelative, which a positive semidefinite A
// allows, when it is small beside its two diagonal entries: small eigenvalues keep their leading digits (Demmel,
// Veselic 1992).
template <Precision precision, class T>
Mask<T> eigh_interleaved(Vec<T>* a, index_t size, Vec<T>* vectors, Vec<T>* values) {
  using namespace jacobi;
  Workspace workspace;
  const RoundRobin schedule(size, workspace);
  if (vectors) {
    for (index_t i = 0; i < size * size; ++i) vectors[i] = Vec<T>{};
    for (index_t i = 0; i < size; ++i) vectors[i * size + i] = broadcast(T(1));
  }
  Vec<T> whole{};
  for (index_t i = 0; i < size * size; ++i) whole += a[i] * a[i];
  constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
  const Vec<T> threshold = precision == Precision::kRelative
                               ? broadcast(kEpsilon * kEpsilon)
                               : whole * (kEpsilon * kEpsilon / 16 / static_cast<T>(std::max<index_t>(size, 1)));
  Mask<T> unsettled{};
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    unsettled = Mask<T>{};
    for (index_t step = 0; step < schedule.steps(); ++step) {
      for (auto pair = schedule.begin(step); pair < schedule.end(step); pair += kTogether) {
        const int together = static_cast<int>(std::min<index_t>(kTogether, schedule.end(step) - pair));
        Vec<T> cosine[kTogether], sine[kTogether];
        Mask<T> changed{};
        for (int j = 0; j < together; ++j) {
          const index_t p = pair[j].first, q = pair[j].second;
          Vec<T> first = a[p * size + p], second = a[q * size + q];
          const Vec<T> g = a[p * size + q];
          const Mask<T> wanted =
              precision == Precision::kRelative ? g * g > threshold * absolute<T>(first * second) : g * g > threshold;
          rotation<T>(first, second, g, wanted, cosine[j], sine[j]);
          changed |= wanted;
          values[p] = first;  // kept until the rows are rotated too
          values[q] = second;
        }
        if (!any<T>(changed)) continue;
        unsettled |= changed;
        for (int j = 0; j < together; ++j) {
          const index_t p = pair[j].first, q = pair[j].second;
          rotate<T>(a + p, a + q, size, size, cosine[j], sine[j]);
          rotate<T>(a + p * size, a + q * size, size, 1, cosine[j], sine[j]);
          if (vectors) rotate<T>(vectors + p * size, vectors + q * size, size, 1, cosine[j], sine[j]);
          // As the formulas say: rounding must not leave a rest that is rotated for ever.
          a[p * size + p] = values[p];
          a[q * size + q] = values[q];
        }
        for (int j = 0; j < together; ++j) {
          const index_t p = pair[j].first, q = pair[j].second;
          const Mask<T> rotated = sine[j] != 0;
          a[p * size + q] = rotated ? Vec<T>{} : a[p * size + q];
          a[q * size + p] = rotated ? Vec<T>{} : a[q * size + p];
        }
      }
    }
    if (!any<T>(unsettled)) break;
  }
  for (index_t i = 0; i < size; ++i) values[i] = a[i * size + i];
  return unsettled;
}

}  // namespace subspan
