// The k best documents so far: a buffer that takes every document above a threshold and, whenever it is full, keeps the
// k best and raises the threshold to the last of them.
#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/simd.h"

namespace subspan {

// Bits of a mask, one for each lane.
inline unsigned lane_bits(Mask<float> mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes<float>; ++i) bits |= static_cast<unsigned>(mask[i] & 1) << i;
  return bits;
#endif
}

inline Vec<float> larger(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// A score and a document as one number, larger for what comes first: higher scores, then lower documents. All numbers
// differ, so which documents are the k best does not depend on how they were found.
inline std::uint64_t rank_of(float score, std::uint32_t document) {
  std::uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  bits ^= (bits >> 31) != 0 ? 0xffffffffu : 0x80000000u;  // the order of floats as that of integers
  return std::uint64_t{bits} << 32 | (0xffffffffu - document);
}
inline float score_of(std::uint64_t rank) {
  auto bits = static_cast<std::uint32_t>(rank >> 32);
  bits ^= (bits >> 31) != 0 ? 0x80000000u : 0xffffffffu;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}
inline std::uint32_t document_of(std::uint64_t rank) { return 0xffffffffu - static_cast<std::uint32_t>(rank); }

class BestDocuments {
 public:
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  // What the caller has to give as memory, for k >= 1.
  static index_t room(index_t k) { return 2 * k + 64; }

  BestDocuments(std::uint64_t* ranks, index_t k) : ranks_(ranks), k_(k) {}

  // Scores up to this do not enter, of documents that come in rising order.
  float threshold() const { return threshold_; }

  void offer(float score, index_t document) {
    if (!(score > threshold_)) return;
    add(rank_of(score + 0.0f, static_cast<std::uint32_t>(document)));  // -0 becomes 0
  }

  // Offers the scores of documents first, first + 1, ... and leaves zeros.
  void take_scores(float* scores, index_t documents, index_t first) {
    constexpr index_t lanes = kLanes<float>, step = 4 * lanes;
    if (threshold_ == -kInfinity) raise_threshold(scores, documents);
    index_t i = 0;
    for (; i + step <= documents; i += step) {
      float* const at = scores + i;
      const Vec<float> a = load(at), b = load(at + lanes), c = load(at + 2 * lanes), d = load(at + 3 * lanes);
      if (lane_bits(larger(larger(a, b), larger(c, d)) > broadcast(threshold_)) != 0) offer_above(scores, i, first);
      for (index_t v = 0; v < step; v += lanes) store(at + v, Vec<float>{});
    }
    for (; i < documents; ++i) {
      offer(scores[i], first + i);
      scores[i] = 0;
    }
  }

  // As offer, of documents in any order.
  void offer_any(float score, index_t document) {
    if (score >= threshold_) add(rank_of(score + 0.0f, static_cast<std::uint32_t>(document)));
  }

  // No document of a lower score is wanted: `candidates` others are known to be better.
  void raise_to(float threshold) { threshold_ = std::max(threshold_, threshold); }

  // The same for documents that all have the score 0.
  void take_zeros(index_t documents, index_t first) {
    for (index_t i = 0; i < documents && threshold_ < 0; ++i) offer(0.0f, first + i);
  }

  // Those of others, whose documents all come later.
  void take(const BestDocuments& others) {
    for (index_t i = 0; i < others.count_; ++i) add(others.ranks_[i]);
  }

  // The best, best first, k of them: fewer were offered only where a file's numbers are made up.
  void write_sorted(float* scores, std::int64_t* documents) {
    if (count_ > k_) keep_best();
    std::sort(ranks_, ranks_ + count_, std::greater<>());
    write(scores, documents);
  }

  // In no order.
  void write(float* scores, std::int64_t* documents) {
    if (count_ > k_) keep_best();
    for (index_t i = 0; i < count_; ++i) {
      scores[i] = score_of(ranks_[i]);
      documents[i] = document_of(ranks_[i]);
    }
    std::fill(scores + count_, scores + k_, 0.0f);
    std::fill(documents + count_, documents + k_, -1);
  }

 private:
  void add(std::uint64_t rank) {
    ranks_[count_++] = rank;
    if (count_ == room(k_)) keep_best();
  }

  void keep_best() {
    std::nth_element(ranks_, ranks_ + k_ - 1, ranks_ + count_, std::greater<>());
    count_ = k_;
    threshold_ = score_of(ranks_[k_ - 1]);
  }

  [[gnu::noinline]] void offer_above(const float* scores, index_t start, index_t first) {
    const float least = threshold_;
    for (index_t i = start; i < start + 4 * kLanes<float>; i += kLanes<float>) {
      for (unsigned above = lane_bits(load(scores + i) > broadcast(least)); above != 0; above &= above - 1) {
        const index_t document = i + __builtin_ctz(above);
        offer(scores[document], first + document);
      }
    }
  }

  // The first scores would all enter. Split into groups, each has its largest score, and the k-th of these is a bound
  // that k documents reach: of most documents only those that may be among the best are then looked at.
  void raise_threshold(const float* scores, index_t documents) {
    constexpr index_t lanes = kLanes<float>, step = 4 * lanes, most = 1024;  // groups
    const index_t groups = (3 * k_ + step - 1) / step * step;
    if (groups > most || documents < 4 * groups) return;
    float bounds[most];
    for (index_t g = 0; g < groups; g += step) {  // four at a time, so that no maximum waits for the one before
      const float* from = scores + g;
      Vec<float> a = load(from), b = load(from + lanes), c = load(from + 2 * lanes), d = load(from + 3 * lanes);
      for (from += groups; from + step <= scores + documents; from += groups) {
        a = larger(a, load(from));
        b = larger(b, load(from + lanes));
        c = larger(c, load(from + 2 * lanes));
        d = larger(d, load(from + 3 * lanes));
      }
      store(bounds + g, a);
      store(bounds + g + lanes, b);
      store(bounds + g + 2 * lanes, c);
      store(bounds + g + 3 * lanes, d);
    }
    std::nth_element(bounds, bounds + k_ - 1, bounds + groups, std::greater<>());
    threshold_ = std::nextafter(bounds[k_ - 1], -kInfinity);
  }

  std::uint64_t* ranks_;
  index_t k_;
  index_t count_ = 0;
  float threshold_ = -kInfinity;
};

}  // namespace subspan
