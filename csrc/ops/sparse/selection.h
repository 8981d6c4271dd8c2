// The k largest of many entries, equal ones by lower column, NaN before all numbers: entries as integer keys, and what
// chooses among them.
#pragma once
#include <algorithm>
#include <functional>

#include "core/workspace.h"
#include "ops/sparse/signs.h"

namespace subspan {

// An entry as one number, larger for larger ranks and, among equal ones, for lower columns: no two are equal. The
// lowest bit says whether the rank is the magnitude of a negative value.
template <class T>
class Key {
 public:
  using type = std::conditional_t<sizeof(T) == 4, std::int64_t, __int128>;
  static constexpr type kHalf = type{1} << (8 * sizeof(type) - 2);
  static constexpr type kMost = kHalf - 1 + kHalf;  // above all entries
  static constexpr type kLeast = -kMost - 1;        // below them

  static type of(T rank, index_t column, bool negative = false) {
    return static_cast<type>(order(rank)) * kRank + (kLastColumn - column) * 2 + negative;
  }
  // The rank alone as an integer.
  static Bits<T> order(T rank) {
    rank += T(0);  // -0 is 0
    Word bits;
    std::memcpy(&bits, &rank, sizeof bits);
    return rank != rank ? std::numeric_limits<Word>::max() : in_order(bits);
  }
  static T rank(type key) {
    const Word bits = in_order(static_cast<Word>(key >> 32));
    T rank;
    std::memcpy(&rank, &bits, sizeof rank);
    return rank;
  }
  static T value(type key) { return key & 1 ? -rank(key) : rank(key); }
  static std::int32_t column(type key) {
    return static_cast<std::int32_t>(kLastColumn - (static_cast<std::uint32_t>(key) >> 1));
  }

 private:
  using Word = Bits<T>;
  static constexpr type kRank = type{1} << 32;
  static constexpr index_t kLastColumn = 0x7fffffff;

  // Integers in the order of the values: the digits of negative ones count downwards. Its own inverse.
  static Word in_order(Word bits) { return bits ^ (bits >> (8 * sizeof(T) - 1) & std::numeric_limits<Word>::max()); }
};

// A bit per lane.
template <class T>
inline unsigned lanes_of(Mask<T> mask) {
#if defined(__AVX512DQ__)
  return sizeof(T) == 4 ? _mm512_movepi32_mask((__m512i)mask) : _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<unsigned>(sizeof(T) == 4 ? _mm256_movemask_ps((__m256)mask) : _mm256_movemask_pd((__m256d)mask));
#else
  unsigned bits = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) bits |= (mask[lane] != 0) << lane;
  return bits;
#endif
}

// How many of `count` entries are larger than `entry`; up to a whole vector after them is read and must not be larger.
// Comparing all with all takes no branches, which for some dozens is faster than sorting.
template <class E>
index_t larger(const E* entries, index_t count, E entry) {
  index_t total = 0;
#pragma GCC unroll 4
  for (index_t i = 0; i < count; i += kLanes<E>) {
    total += __builtin_popcount(lanes_of<E>(load(entries + i) > entry));
  }
  return total;
}
constexpr index_t kFewEntries = 256;  // up to so many are compared with all

// Room after an array of entries that whole vectors of it are read from.
template <class E>
constexpr index_t kSpare = kVectorBytes / static_cast<index_t>(sizeof(E));

// The k largest of `count` >= k keys, largest first. There is room for kSpare more keys, and `sorted` has room for
// sorted_room(k).
inline index_t sorted_room(index_t k) { return std::max(k, kFewEntries); }
template <class K>
void sort_largest(K* keys, index_t count, index_t k, K* sorted) {
  if constexpr (sizeof(K) == 8) {
    if (count <= kFewEntries) {
      std::fill_n(keys + count, kSpare<K>, std::numeric_limits<K>::min());
      for (index_t i = 0; i < count; ++i) sorted[larger(keys, count, keys[i])] = keys[i];
      return;
    }
  }
  if (count > k) std::nth_element(keys, keys + k, keys + count, std::greater<>());
  std::sort(keys, keys + k, std::greater<>());
  std::copy_n(keys, k, sorted);
}

// Of each of some rows whose entries come in the order of their columns, those that may be among the k largest. What
// does not exceed the threshold of its row need not be offered: k entries before it are at least as large.
template <class T>
class Candidates {
 public:
  using KeyType = typename Key<T>::type;

  // Thresholds are read in whole vectors: `padded` >= rows; nothing enters the rows beyond.
  Candidates(index_t rows, index_t padded, index_t k, Workspace& workspace)
      : k_(k), capacity_((k + std::max<index_t>(k, 32) + 7) / 8 * 8) {
    thresholds_ = workspace.take<T>(padded);
    states_ = workspace.take<State>(padded);
    keys_ = workspace.take<KeyType>(rows * step());
    for (index_t row = 0; row < rows; ++row) {  // whole vectors of keys are compared
      std::fill_n(keys_ + row * step() + capacity_, kSpare<KeyType>, Key<T>::kLeast);
    }
    for (index_t row = 0; row < padded; ++row) {
      const bool exists = row < rows;
      thresholds_[row] = exists ? std::numeric_limits<T>::quiet_NaN() : std::numeric_limits<T>::infinity();
      states_[row] = {exists ? Key<T>::kLeast : Key<T>::kMost, 0};
    }
  }

  // To be compared by !(rank <= threshold), which NaN passes on either side.
  const T* thresholds() const { return thresholds_; }

  void offer(index_t row, T rank, index_t column, bool negative) {
    State& state = states_[row];
    const KeyType key = Key<T>::of(rank, column, negative);
    if (key <= state.least) return;
    keys_[row * step() + state.count] = key;
    if (++state.count == capacity_) prune(row);
  }

  // The k largest entries offered for a row, or all and then kLeast if they are fewer.
  void sorted(index_t row, KeyType* result) {
    KeyType* keys = keys_ + row * step();
    const index_t count = states_[row].count, known = std::min(count, k_);
    sort_largest(keys, count, known, result);
    std::fill(result + known, result + k_, Key<T>::kLeast);
  }

 private:
  struct State {
    KeyType least;  // of the k largest so far
    index_t count;
  };
  index_t step() const { return capacity_ + kSpare<KeyType>; }

  // Keeps what is above a number that k entries or a few more exceed. An entry to come that is of the number's rank is
  // below all of these, for its column is higher.
  void prune(index_t row) {
    KeyType* keys = keys_ + row * step();
    KeyType least;
    if constexpr (sizeof(KeyType) == 8) {
      least = below_largest(keys);
    } else {
      std::nth_element(keys, keys + k_ - 1, keys + capacity_, std::greater<>());
      least = keys[k_ - 1] - 1;
    }
    const T rank = Key<T>::rank(least);
    thresholds_[row] = rank == rank ? rank : std::numeric_limits<T>::infinity();
    index_t count = 0;
    for (index_t i = 0; i < capacity_; ++i) {  // without a branch, which would be a guess
      const KeyType key = keys[i];
      keys[count] = key;
      count += key > least;
    }
    states_[row] = {least, count};
  }

  // By bisection, for which comparing with all takes no branches.
  KeyType below_largest(const KeyType* keys) const {
    KeyType low = Key<T>::kMost, high = Key<T>::kLeast;
    for (index_t i = 0; i < capacity_; ++i) {
      low = std::min(low, keys[i] - 1);
      high = std::max(high, keys[i]);
    }
    const index_t slack = (capacity_ - k_) / 8;
    for (index_t count = capacity_; count > k_ + slack;) {  // exceed `low`, fewer than k `high`
      const KeyType middle = low + static_cast<KeyType>((static_cast<std::uint64_t>(high) - low) / 2);
      const index_t above = larger(keys, capacity_, middle);
      if (above >= k_) {
        low = middle;
        count = above;
      } else {
        high = middle;
      }
    }
    return low;
  }

  index_t k_, capacity_;
  T* thresholds_;
  State* states_;
  KeyType* keys_;
};

}  // namespace subspan
