#include "core/dispatch.h"
#include "core/pack.h"
#include "core/parallel.h"
#include "ops/sparse/linear_topk.h"
#include "ops/sparse/selection.h"

namespace subspan {
namespace {

// Rows of x lie in the lanes of a tile and rows of W, the features, are its rows: a feature is then read where it lies,
// and a tile is compared with the thresholds of its lanes before it leaves the registers. An entry is the sum over
// blocks of kDepth columns, each summed in order, wherever it stands: it has the same bits for any number of threads
// and in any batch.
constexpr index_t kDepth = 1024;
constexpr index_t kGroup = 64;                           // features that are brought in together
constexpr index_t kPanelBytes = index_t{768} << 10;      // of x that a task works on, a part of a second-level cache
constexpr index_t kCandidateBytes = index_t{8} << 20;    // of a task, for large k
constexpr index_t kFewestFeatures = 512, kPerEntry = 8;  // of a task: k of them enter before there is a threshold

// Some rows of a matrix as the left operand of the micro-kernel: entry (i, k) is at data[i * row_step + k * step].
// Where they lie in the matrix, `after` more rows follow.
template <class T>
struct LeftRows {
  const T* data;
  index_t row_step, step, after;
};

// Parts of rows that will be read soon.
template <class T>
struct Ahead {
  const T* data;
  index_t row_step, rows;
};

// Brings in groups of rows: where they lie, or a copy in the type that is computed in. A copy ends with rows of zeros
// up to a whole tile.
template <class T>
class RowGroups {
 public:
  RowGroups(const TensorView& W, index_t item, Workspace& workspace)
      : features_(W.size(-2)),
        depth_(W.size(-1)),
        row_step_(W.step(-2)),
        rows_(batch_item(W, 2, item), W.dtype, W.step(-2), W.step(-1)),
        columns_(batch_item(W, 2, item), W.dtype, W.step(-1), W.step(-2)),
        by_columns_(W.step(-1) != 1) {
    copy_ = workspace.take<T>(kGroup * copy_step());
  }

  LeftRows<T> read(index_t first, index_t count) const {
    if (rows_.in_place() && count % kTileRows == 0)
      return {rows_.read(first, 0, depth_, nullptr), row_step_, 1, features_ - first - count};
    return by_columns_ ? copy_columns(first, count) : copy_rows(first, count);
  }

 private:
  index_t copy_step() const { return depth_ + kLanes<T>; }

  LeftRows<T> copy_rows(index_t first, index_t count) const {
    for (index_t i = 0; i < round_up(count, kTileRows); ++i) {
      T* to = copy_ + i * copy_step();
      if (i >= count) {
        std::fill_n(to, depth_, T(0));
      } else if (const T* from = rows_.read(first + i, 0, depth_, to); from != to) {
        std::copy_n(from, depth_, to);
      }
    }
    return {copy_, copy_step(), 1, 0};
  }

  LeftRows<T> copy_columns(index_t first, index_t count) const {
    for (index_t k = 0; k < depth_; ++k) {
      T* to = copy_ + k * kGroup;
      if (const T* from = columns_.read(k, first, count, to); from != to) std::copy_n(from, count, to);
      std::fill(to + count, to + round_up(count, kTileRows), T(0));
    }
    return {copy_, 1, kGroup, 0};
  }

  index_t features_, depth_, row_step_;
  Rows<T> rows_, columns_;
  bool by_columns_;
  T* copy_;
};

// The micro-kernel as a function of its own, or its strides would find no registers beside those of the loops around.
// What lies ahead is asked for line by line: rows that lie far apart are beyond what the hardware foresees, and many
// requests at once would keep the others waiting.
template <int Vectors, class T>
[[gnu::noinline]] void multiply_features(const T* left, const LeftRows<T>& features, const T* right, index_t right_step,
                                         index_t depth, const Ahead<T>& ahead, Vec<T> (&result)[kTileRows][Vectors]) {
  constexpr index_t line = 64 / sizeof(T);
  Vec<T> sums[kTileRows][Vectors] = {};
  const auto add = [&](index_t k, index_t count) {
    add_strided_tile<Vectors>(left + k * features.step, features.row_step, features.step, right + k * right_step,
                              right_step, count, sums);
  };
  index_t k = 0;
  for (; k + line <= depth; k += line) {
    for (index_t i = 0; i < ahead.rows; ++i) __builtin_prefetch(ahead.data + k + i * ahead.row_step, 0, 2);
    add(k, line);
  }
  add(k, depth - k);
  for (int i = 0; i < kTileRows; ++i) {
    for (int v = 0; v < Vectors; ++v) result[i][v] = sums[i][v];
  }
}

// Some rows of x with some features.
template <class T>
class Block {
 public:
  Block(const Rows<T>& x, index_t first_row, index_t rows, index_t depth, const TopkParameters& parameters,
        Workspace& workspace)
      : rows_(rows),
        padded_(round_up(rows, tile_width(rows))),
        depth_(depth),
        by_magnitude_(parameters.by_magnitude),
        x_{workspace.take<T>(padded_ * depth), depth, tile_width(rows)},
        sums_(depth > kDepth ? workspace.take<T>(kGroup * padded_) : nullptr),
        candidates_(rows, padded_, parameters.k, workspace) {
    pack_rows(x, first_row, rows, 0, depth, x_);
  }

  // The features of one group, the first of which is the column `first` of the product.
  void add(const LeftRows<T>& features, index_t first, index_t count, const T* bias) {
    for (index_t k = 0; k == 0 || k < depth_; k += kDepth) {
      for (index_t i = 0; i < count; i += kTileRows) {
        for (index_t row = 0; row < rows_; row += x_.width) {
          const Ahead<T> ahead = next_rows(features, i + kTileRows, count, k, row);
          with_vectors<T>((std::min(rows_ - row, x_.width) + kLanes<T> - 1) / kLanes<T>, [&](auto vectors) {
            Vec<T> sums[kTileRows][vectors.value];
            multiply_features<vectors.value>(features.data + i * features.row_step + k * features.step, features,
                                             x_.at(k, row), x_.width, std::min(kDepth, depth_ - k), ahead, sums);
            if (k > 0) add_previous(i, row, sums);
            if (k + kDepth < depth_) {
              keep(i, row, sums);
            } else {
              const index_t present = std::min<index_t>(kTileRows, count - i);
              by_magnitude_ ? offer<true>(row, first + i, present, bias ? bias + i : nullptr, sums)
                            : offer<false>(row, first + i, present, bias ? bias + i : nullptr, sums);
            }
          });
        }
      }
    }
  }

  void sorted(index_t row, typename Key<T>::type* result) { candidates_.sorted(row, result); }

 private:
  // Tiles of two vectors are as good as those of three; a last one of one vector is not.
  static index_t tile_width(index_t rows) {
    const index_t vectors = (rows + kLanes<T> - 1) / kLanes<T>;
    return (vectors % 3 != 0 && vectors % 2 == 0 ? 2 : std::min<index_t>(vectors, kTileVectors<T>)) * kLanes<T>;
  }

  // A share of the features that the next tiles work on, which are those of the next group at the end of one.
  Ahead<T> next_rows(const LeftRows<T>& features, index_t first, index_t count, index_t k, index_t row) const {
    if (features.step != 1) return {nullptr, 0, 0};
    const index_t panels = padded_ / x_.width, panel = row / x_.width;
    const index_t begin = first + panel * kTileRows / panels, end = first + (panel + 1) * kTileRows / panels;
    const index_t present = std::max<index_t>(std::min(end, count + features.after) - begin, 0);
    return {features.data + begin * features.row_step + k, features.row_step, present};
  }

  template <int Vectors>
  void keep(index_t feature, index_t row, const Vec<T> (&sums)[kTileRows][Vectors]) {
    T* to = sums_ + feature * padded_ + row;
    for (int i = 0; i < kTileRows; ++i, to += padded_) {
      for (int v = 0; v < Vectors; ++v) store(to + v * kLanes<T>, sums[i][v]);
    }
  }
  template <int Vectors>
  void add_previous(index_t feature, index_t row, Vec<T> (&sums)[kTileRows][Vectors]) {
    const T* from = sums_ + feature * padded_ + row;
    for (int i = 0; i < kTileRows; ++i, from += padded_) {
      for (int v = 0; v < Vectors; ++v) sums[i][v] += load(from + v * kLanes<T>);
    }
  }

  template <bool Magnitude, int Vectors>
  [[gnu::always_inline]] void offer(index_t row, index_t column, index_t count, const T* bias,
                                    Vec<T> (&sums)[kTileRows][Vectors]) {
    constexpr unsigned all = (1u << kLanes<T>)-1;
    const T* thresholds = candidates_.thresholds() + row;
    for (index_t i = 0; i < count; ++i) {
      for (int v = 0; v < Vectors; ++v) {
        const Vec<T> values = bias ? sums[i][v] + bias[i] : sums[i][v];
        const Vec<T> ranks = Magnitude ? magnitude<T>(values) : values;
        unsigned found = ~lanes_of<T>(ranks <= load(thresholds + v * kLanes<T>)) & all;
        if (found != 0) offer_lanes<Magnitude>(found, row + v * kLanes<T>, column + i, values);
      }
    }
  }

  template <bool Magnitude>
  [[gnu::noinline]] void offer_lanes(unsigned found, index_t row, index_t column, Vec<T> values) {
    T lanes[kLanes<T>];
    store(lanes, values);
    for (; found != 0; found &= found - 1) {
      const int lane = __builtin_ctz(found);
      const T rank = Magnitude ? std::abs(lanes[lane]) : lanes[lane];
      candidates_.offer(row + lane, rank, column, Magnitude && lanes[lane] < 0);
    }
  }

  index_t rows_, padded_, depth_;
  bool by_magnitude_;
  Panels<T> x_;
  T* sums_;
  Candidates<T> candidates_;
};

// Tasks are blocks of rows with all features or, where there are too few blocks for the threads, with some.
template <class T>
class Encoder {
 public:
  using KeyType = typename Key<T>::type;

  Encoder(const TensorView& x, const TensorView& W, const TensorView* b, const TensorView& values,
          const TensorView* indices, const TopkParameters& parameters)
      : x_(x),
        W_(W),
        b_(b),
        values_(values.ptr<T>()),
        indices_(indices ? indices->ptr<std::int32_t>() : nullptr),
        parameters_(parameters),
        items_(batch_count(x, 2)),
        rows_(x.size(-2)),
        depth_(x.size(-1)),
        features_(W.size(-2)) {}

  void run(int threads) {
    if (items_ * rows_ == 0) return;
    const int used = useful_threads(2.0 * static_cast<double>(x_.numel()) * static_cast<double>(features_), threads);
    const index_t panel_bytes = std::clamp<index_t>(depth_, 1, kDepth) * sizeof(T) * kPanelWidth<T>;
    const index_t panels = std::clamp<index_t>(kPanelBytes / panel_bytes, 1, 8);
    const index_t most = std::clamp<index_t>(kCandidateBytes / (2 * parameters_.k * sizeof(KeyType)), kLanes<T>,
                                             panels * kPanelWidth<T>);
    index_t row_blocks = (rows_ + most - 1) / most;
    if (row_blocks > 1) row_blocks = round_up(row_blocks, used);
    index_t vectors = ((rows_ + row_blocks - 1) / row_blocks + kLanes<T> - 1) / kLanes<T>;
    if (vectors % 6 == 1 && vectors > 1) ++vectors;  // whole tiles of two or three
    block_rows_ = vectors * kLanes<T>;
    row_blocks = (rows_ + block_rows_ - 1) / block_rows_;
    const index_t blocks = items_ * row_blocks;
    const index_t fewest = std::max(kFewestFeatures, kPerEntry * parameters_.k);
    const index_t wanted = used == 1 || blocks >= 4 * used ? 1 : (4 * used + blocks - 1) / blocks;
    parts_ = std::clamp<index_t>(features_ / fewest, 1, wanted);
    part_features_ = round_up((features_ + parts_ - 1) / parts_, kTileRows);
    parts_ = (features_ + part_features_ - 1) / part_features_;
    Workspace workspace;
    KeyType* found = parts_ > 1 ? workspace.take<KeyType>(items_ * rows_ * parts_ * parameters_.k) : nullptr;
    parallel_for(blocks * parts_, used, [&](index_t task) { select(task / parts_, task % parts_, found); }, 1);
    if (parts_ > 1) parallel_for(items_ * rows_, used, [&](index_t row) { merge(row, found); });
  }

 private:
  void select(index_t block, index_t part, KeyType* found) const {
    const index_t blocks = (rows_ + block_rows_ - 1) / block_rows_, k = parameters_.k;
    const index_t item = block / blocks, row = block % blocks * block_rows_;
    const index_t count = std::min(block_rows_, rows_ - row);
    const index_t begin = part * part_features_, end = std::min(features_, begin + part_features_);
    Workspace workspace;
    const RowGroups<T> features(W_, item, workspace);
    const Rows<T> x(batch_item(x_, 2, item), x_.dtype, x_.step(-2), x_.step(-1));
    Block<T> rows(x, row, count, depth_, parameters_, workspace);
    T bias[kGroup];
    for (index_t first = begin; first < end; first += kGroup) {
      const index_t group = std::min(kGroup, end - first);
      rows.add(features.read(first, group), first, group, read_bias(item, first, group, bias));
    }
    KeyType* keys = workspace.take<KeyType>(sorted_room(k));
    for (index_t i = 0; i < count; ++i) {
      const index_t at = item * rows_ + row + i;
      rows.sorted(i, keys);
      if (found) {
        std::copy_n(keys, k, found + (at * parts_ + part) * k);
      } else {
        write(at, keys);
      }
    }
  }

  const T* read_bias(index_t item, index_t first, index_t count, T* scratch) const {
    if (!b_) return nullptr;
    return Rows<T>(batch_item(*b_, 1, item), b_->dtype, 0, b_->step(-1)).read(0, first, count, scratch);
  }

  void merge(index_t row, const KeyType* found) const {
    const index_t k = parameters_.k, count = parts_ * k;
    Workspace workspace;
    KeyType* keys = workspace.take<KeyType>(count + kSpare<KeyType>);
    KeyType* sorted = workspace.take<KeyType>(sorted_room(k));
    // Keys that stand for no entry are equal, which sort_largest does not take.
    const KeyType* from = found + row * count;
    index_t known = 0;
    for (index_t i = 0; i < count; ++i) {
      if (from[i] != Key<T>::kLeast) keys[known++] = from[i];
    }
    sort_largest(keys, known, k, sorted);
    write(row, sorted);
  }

  void write(index_t row, const KeyType* keys) const {
    for (index_t i = 0, at = row * parameters_.k; i < parameters_.k; ++i, ++at) {
      const T value = Key<T>::value(keys[i]);
      values_[at] = parameters_.relu && value <= 0 ? T(0) : value;
      if (indices_) indices_[at] = Key<T>::column(keys[i]);
    }
  }

  const TensorView& x_;
  const TensorView& W_;
  const TensorView* b_;
  T* values_;
  std::int32_t* indices_;
  const TopkParameters& parameters_;
  index_t items_, rows_, depth_, features_;
  index_t block_rows_ = 0, parts_ = 1, part_features_ = 0;
};

}  // namespace

void linear_topk_cpu(const TensorView& x, const TensorView& W, const TensorView* b, const TensorView& values,
                     const TensorView* indices, const TopkParameters& parameters, int threads) {
  dispatch_float(values.dtype, "linear_topk", [&](auto tag) {
    Encoder<typename decltype(tag)::type>(x, W, b, values, indices, parameters).run(threads);
  });
}

}  // namespace subspan
