// The Khatri-Rao product of Z with itself, formed while packing: row i holds the products z_a z_b of sample i.
//
// Pairs are ordered by shift: s = 0 ... d/2, and within a shift all a, b = (a + s) mod d. Every unordered pair occurs
// once (twice at s = d/2 for even d), and neighbouring pairs come from neighbouring features: a vector of pairs is the
// product of two vector loads, and its contribution to a gradient two vector additions.
#pragma once
#include "core/pack.h"

namespace subspan {

template <class T>
class FeaturePairs {
 public:
  explicit FeaturePairs(index_t features)
      : features_(features), padded_(round_up(features, kLanes<T>)), shifts_(features / 2 + 1) {}

  index_t features() const { return features_; }
  index_t shifts() const { return shifts_; }
  // Whole panels: pairs with a >= d and those after the last shift are padding.
  index_t count() const { return round_up(shifts_ * padded_, kPanelWidth<T>); }
  index_t index(index_t shift, index_t a) const { return shift * padded_ + a; }
  // How often a pair counts in z M z: of different features twice, unless it occurs twice.
  T multiplicity(index_t shift) const { return shift == 0 || 2 * shift == features_ ? T(1) : T(2); }

  // Length of a row that is continued periodically, so that z_b of any vector of pairs is one load.
  index_t periodic() const { return padded_ + shifts_ + kLanes<T>; }
  // The vectors of one panel: `shift` and the first a of each; those after the last shift are not present.
  struct Panel {
    index_t shift[kTileVectors<T>], a[kTileVectors<T>];
    bool present[kTileVectors<T>], twice[kTileVectors<T>];
  };
  Panel panel(index_t first_pair) const {
    Panel panel;
    for (int v = 0; v < kTileVectors<T>; ++v) {
      const index_t pair = first_pair + v * kLanes<T>;
      panel.shift[v] = pair / padded_;
      panel.a[v] = pair % padded_;
      panel.present[v] = panel.shift[v] < shifts_;
      panel.twice[v] = multiplicity(panel.shift[v]) == 2;
    }
    return panel;
  }

  void extend(const T* row, T* periodic_row) const {
    for (index_t k = 0; k < periodic(); ++k) periodic_row[k] = row[k % features_];
  }
  // The transpose of extend: adds a periodic row to a row.
  template <class Out>
  void fold(const T* periodic_row, Out* row) const {
    for (index_t k = 0; k < periodic(); ++k) row[k % features_] += static_cast<Out>(periodic_row[k]);
  }

  // to[i][.] = one panel of pairs, the first being `pair`, for `samples` periodic rows.
  void pack_samples(const T* rows, index_t samples, index_t pair, T* to) const {
    const Panel of = panel(pair);
    for (int v = 0; v < kTileVectors<T>; ++v) {
      T* out = to + v * kLanes<T>;
      for (index_t i = 0; i < samples; ++i, out += kPanelWidth<T>) {
        const T* row = rows + i * periodic() + of.a[v];
        store(out, of.present[v] ? load(row) * load(row + of.shift[v]) : Vec<T>{});
      }
    }
  }

  // to[p][.] = pairs `pair` + p of one panel of samples times their multiplicity, from their features [a][samples].
  void pack_pairs(const T* features, index_t pair, index_t pairs, T* to) const {
    constexpr index_t width = kPanelWidth<T>;
    index_t shift = pair / padded_, a = pair % padded_;
    while (pairs > 0) {
      // As many pairs as follow each other in both factors, or in the padding.
      const bool present = shift < shifts_ && a < features_;
      const index_t b = a + shift < features_ ? a + shift : a + shift - features_;
      const index_t count = std::min(pairs, present ? features_ - std::max(a, b) : padded_ - a);
      if (present) {
        multiply_rows_of(features + a * width, features + b * width, multiplicity(shift), count, to);
      } else {
        std::fill_n(to, count * width, T(0));
      }
      to += count * width, pairs -= count, a += count;
      if (a == padded_) a = 0, ++shift;
    }
  }

 private:
  static void multiply_rows_of(const T* first, const T* second, T scale, index_t count, T* to) {
    for (index_t k = 0; k < count * kPanelWidth<T>; k += kLanes<T>) {
      store(to + k, load(first + k) * load(second + k) * scale);
    }
  }

  index_t features_, padded_, shifts_;
};

}  // namespace subspan
