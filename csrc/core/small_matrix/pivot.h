// The two kinds of pivot of a Cholesky factorisation, and what a factorisation reports.
#pragma once
#include "core/small_matrix/log_product.h"

namespace subspan {

// kPlain:    factors A. A pivot that is not positive makes the result NaN; `info` is its 1-based index.
// kIdentity: factors I + B for positive semidefinite B without ever forming I + B. A Schur complement of I + B is at
//            least I, so the exact pivot is 1 + delta with delta >= 0, delta being the Schur complement's entry without
//            the identity. Rounding below zero is clamped, hence no finite input can break it down, and log1p(delta)
//            keeps tiny rates exact. `info` counts clamped pivots, -1 where the input is not finite.
enum class Pivot { kPlain, kIdentity };

// Takes pivots in order; E is a number or a vector of independent matrices.
template <class T, class E, Pivot kind>
class PivotLog {
 public:
  using Count = std::conditional_t<std::is_same_v<T, E>, index_t,
                                   Vec<std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>>>;

  // The entry of the Schur complement on the diagonal gives the diagonal entry of the factor.
  E factor_entry(E schur, index_t index) {
    E pivot;
    if constexpr (kind == Pivot::kIdentity) {
      const auto negative = schur < T(0);
      const E finite = schur - schur;  // NaN where the entry is NaN or infinite: neither may pass as a number
      const E delta = (negative ? E{} : schur) + finite;
      info_ += count_where(negative);
      log_.multiply_one_plus(delta);
      pivot = delta + T(1);
    } else {
      const auto good = (schur > T(0)) & (schur - schur == T(0));
      const E nan = E{} + static_cast<T>(NAN);
      info_ = first_where(!good, index + 1);
      pivot = good ? schur : nan;
      log_.multiply(pivot);
    }
    return square_root(pivot);
  }

  // NaN where a pivot was not acceptable.
  E log() const { return log_.log(); }

  Count info() const {
    if constexpr (kind == Pivot::kIdentity) {
      const E value = log();
      return value - value == T(0) ? info_ : Count{} - 1;
    } else {
      return info_;
    }
  }

 private:
  static index_t count_where(bool condition) { return condition; }
  template <class V>
  static V count_where(const V& mask) {
    return -mask;  // a true lane is -1
  }
  index_t first_where(bool bad, index_t value) const { return info_ == 0 && bad ? value : info_; }
  template <class V>
  V first_where(const V& bad, index_t value) const {
    return (info_ == 0) & bad ? V{} + static_cast<decltype(info_[0] + 0)>(value) : info_;
  }
  LogProduct<T, E> log_;
  Count info_{};
};

}  // namespace subspan
