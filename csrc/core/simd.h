// Fixed-width vectors written with GCC/Clang vector extensions: plain operators, no intrinsics but for an estimate that
// no operator gives, every architecture. The width follows the instruction set the file is compiled for: wider vectors
// would be emulated badly.
#pragma once
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/tensor_view.h"

namespace subspan {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

namespace detail {
template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
}  // namespace detail

template <class T>
using Vec = typename detail::VectorOf<T>::type;

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(T* to, Vec<T> v) {
  std::memcpy(to, &v, sizeof v);
}

// The first `count` lanes; the others are zero.
template <class T>
inline Vec<T> load_partial(const T* from, index_t count) {
  T lanes[kLanes<T>] = {};
  for (index_t i = 0; i < count; ++i) lanes[i] = from[i];
  return load(lanes);
}

// A difference to zero, which is the value itself: a sum, which is not for -0, would be computed.
template <class T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

inline Vec<float> square_root(Vec<float> v) {
  for (int i = 0; i < kLanes<float>; ++i) v[i] = std::sqrt(v[i]);
  return v;
}
inline Vec<double> square_root(Vec<double> v) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] = std::sqrt(v[i]);
  return v;
}
inline float square_root(float v) { return std::sqrt(v); }
inline double square_root(double v) { return std::sqrt(v); }

// What a comparison of two Vec<T> gives: integers of the lanes' size, all bits set where it holds.
template <class T>
using Mask = decltype(Vec<T>{} < Vec<T>{});

// Whether a mask holds in any lane.
template <class T>
inline bool any(Mask<T> mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  std::int64_t words[kVectorBytes / 8];
  std::memcpy(words, &mask, sizeof words);
  return (words[0] | words[1]) != 0;
#endif
}

namespace detail {
// One step of Newton's method for 1 / sqrt(v) doubles the digits of `estimate`.
template <class T>
inline Vec<T> refine_inverse_square_root(Vec<T> v, Vec<T> estimate) {
  return estimate * (T(1.5) - v * T(0.5) * estimate * estimate);
}
}  // namespace detail

// 1 / sqrt(v) for normal v > 0, to about two units in the last place: quotients and roots of whole vectors are slow.
inline Vec<float> inverse_square_root(Vec<float> v) {
#if defined(__AVX512F__)
  return detail::refine_inverse_square_root<float>(v, (Vec<float>)_mm512_rsqrt14_ps((__m512)v));
#elif defined(__AVX2__)
  return detail::refine_inverse_square_root<float>(v, (Vec<float>)_mm256_rsqrt_ps((__m256)v));
#else
  return 1 / square_root(v);
#endif
}
inline Vec<double> inverse_square_root(Vec<double> v) {
#if defined(__AVX512F__)
  const Vec<double> estimate =
      detail::refine_inverse_square_root<double>(v, (Vec<double>)_mm512_rsqrt14_pd((__m512d)v));
  return detail::refine_inverse_square_root<double>(v, estimate);
#else
  return 1 / square_root(v);
#endif
}

namespace detail {
// Entries of 16 bytes: the block within which a shuffle is cheapest. Whole blocks are exchanged at the next lower cost,
// as long as a result takes its first half from one vector and its second from another.
template <class T>
constexpr int kBlock = 16 / sizeof(T);

// Within blocks of Size entries, those of the first, or second, half of a's by turns with b's.
template <int Size, class T, int... I>
inline Vec<T> zip_low(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / Size * Size + I % Size / 2 + I % 2 * kLanes<T>)...);
}
template <int Size, class T, int... I>
inline Vec<T> zip_high(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / Size * Size + Size / 2 + I % Size / 2 + I % 2 * kLanes<T>)...);
}
// Lane i of the blocks with even numbers, counted through a's and then b's, of each `Side` lanes by themselves; with
// `odd` = 1 of the others.
template <int Side, class T>
constexpr int every_other_block(int i, int odd) {
  constexpr int block = kBlock<T>;
  const int number = 2 * (i % Side / block) + odd, blocks = Side / block;
  return i / Side * Side + number % blocks * block + i % block + number / blocks * kLanes<T>;
}
template <int Side, class T, int... I>
inline Vec<T> even_blocks(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, every_other_block<Side, T>(I, 0)...);
}
template <int Side, class T, int... I>
inline Vec<T> odd_blocks(Vec<T> a, Vec<T> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, every_other_block<Side, T>(I, 1)...);
}

// Squares of Side x Side entries, side by side: first those of a block's size that they consist of, then the places of
// these. Zipping row i with row i + n/2 is one step of a perfect shuffle of n x n entries; log2(n) such steps exchange
// the row bits of every index with its column bits, and so do as many of their inverse.
template <int Side, class T>
[[gnu::always_inline]] inline void transpose_squares(Vec<T> (&rows)[Side]) {
  constexpr int block = std::min(kBlock<T>, Side), blocks = Side / block;
  using Lanes = std::make_integer_sequence<int, kLanes<T>>;
  Vec<T> next[Side];
#pragma GCC unroll 2
  for (int step = 1; step < block; step *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < Side / 2; ++i) {
      const int group = i / (block / 2) * block, row = i % (block / 2);
      const Vec<T>&a = rows[group + row], &b = rows[group + row + block / 2];
      next[group + 2 * row] = zip_low<block, T>(a, b, Lanes{});
      next[group + 2 * row + 1] = zip_high<block, T>(a, b, Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < Side; ++i) rows[i] = next[i];
  }
  if constexpr (blocks > 1) {
#pragma GCC unroll 2
    for (int step = 1; step < blocks; step *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < Side / 2; ++i) {
        const int group = i / block, row = i % block;
        const Vec<T>&a = rows[2 * group * block + row], &b = rows[(2 * group + 1) * block + row];
        next[group * block + row] = even_blocks<Side, T>(a, b, Lanes{});
        next[(group + blocks / 2) * block + row] = odd_blocks<Side, T>(a, b, Lanes{});
      }
#pragma GCC unroll 16
      for (int i = 0; i < Side; ++i) rows[i] = next[i];
    }
  }
}
}  // namespace detail

// Transposes a square of kLanes x kLanes entries in registers.
template <class T>
[[gnu::always_inline]] inline void transpose_square(Vec<T> (&rows)[kLanes<T>]) {
  detail::transpose_squares<kLanes<T>, T>(rows);
}
// Two squares of half the size side by side.
template <class T>
[[gnu::always_inline]] inline void transpose_half_squares(Vec<T> (&rows)[kLanes<T> / 2]) {
  detail::transpose_squares<kLanes<T> / 2, T>(rows);
}

// Sums over the lanes of as many vectors as there are lanes, in their order: half the shuffles of a transposition,
// since adding what it would keep apart keeps the partial sums of both.
template <class T>
[[gnu::always_inline]] inline Vec<T> lane_sums(const Vec<T>* sums) {
  constexpr int lanes = kLanes<T>, block = detail::kBlock<T>;
  using Lanes = std::make_integer_sequence<int, lanes>;
  Vec<T> v[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) v[i] = sums[i];
#pragma GCC unroll 2
  for (int groups = lanes / block; groups > 1; groups /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < groups / 2 * block; ++i) {
      const int group = i / block, row = i % block;
      const Vec<T>&a = v[2 * group * block + row], &b = v[(2 * group + 1) * block + row];
      v[i] = detail::even_blocks<lanes, T>(a, b, Lanes{}) + detail::odd_blocks<lanes, T>(a, b, Lanes{});
    }
  }
#pragma GCC unroll 2
  for (int half = block / 2; half > 0; half /= 2) {
#pragma GCC unroll 2
    for (int i = 0; i < half; ++i) {
      v[i] = detail::zip_low<block, T>(v[i], v[i + half], Lanes{}) +
             detail::zip_high<block, T>(v[i], v[i + half], Lanes{});
    }
  }
  return v[0];
}

namespace detail {
template <class T>
struct HalfVectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes / 2)));
  typedef T anywhere __attribute__((vector_size(kVectorBytes / 2), aligned(sizeof(T)), may_alias));
};
template <class T, int... I>
inline Vec<T> join(typename HalfVectorOf<T>::type a, typename HalfVectorOf<T>::type b,
                   std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, I...);
}
template <class T, int... I>
inline typename HalfVectorOf<T>::type half_from(Vec<T> v, int first, std::integer_sequence<int, I...>) {
  return first == 0 ? __builtin_shufflevector(v, v, I...) : __builtin_shufflevector(v, v, (I + kLanes<T> / 2)...);
}
}  // namespace detail

// Two half vectors side by side, and their inverse.
template <class T>
inline Vec<T> load_halves(const T* low, const T* high) {
  // Read as a type that may lie anywhere: GCC copies what memcpy gives through memory once more.
  using Half = typename detail::HalfVectorOf<T>::anywhere;
  const typename detail::HalfVectorOf<T>::type a = *reinterpret_cast<const Half*>(low);
  const typename detail::HalfVectorOf<T>::type b = *reinterpret_cast<const Half*>(high);
  return detail::join<T>(a, b, std::make_integer_sequence<int, kLanes<T>>{});
}
template <class T>
inline void store_halves(T* low, T* high, Vec<T> v) {
  using Half = std::make_integer_sequence<int, kLanes<T> / 2>;
  const auto a = detail::half_from<T>(v, 0, Half{}), b = detail::half_from<T>(v, 1, Half{});
  std::memcpy(low, &a, sizeof a);
  std::memcpy(high, &b, sizeof b);
}

// The first `count` lanes of v; whole and half vectors, which most are, in one piece.
template <class T>
inline void store_entries(T* to, Vec<T> v, index_t count) {
  constexpr index_t half = kLanes<T> / 2;
  if (count >= kLanes<T>) return store(to, v);
  T lanes[kLanes<T>];
  if (count == half) {
    store_halves(to, lanes, v);
  } else {
    store(lanes, v);
    for (index_t i = 0; i < count; ++i) to[i] = lanes[i];
  }
}

}  // namespace subspan
