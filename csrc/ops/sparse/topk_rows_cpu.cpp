#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/sparse/selection.h"
#include "ops/sparse/topk_rows.h"

namespace subspan {
namespace {

// One row: a bound below the k-th largest entry from the maxima of groups of columns, the entries that reach it, and
// the k largest of those.
template <class T>
class Selection {
 public:
  using KeyType = typename Key<T>::type;

  Selection(index_t columns, const TopkParameters& parameters, Workspace& workspace)
      : columns_(columns), parameters_(parameters) {
    converted_ = workspace.take<T>(columns);
    sizes_ = parameters.by_magnitude ? workspace.take<T>(columns) : nullptr;
    maxima_ = workspace.take<T>(kMostGroups + kSpare<T>);
    keys_ = workspace.take<KeyType>(columns + kSpare<KeyType>);
    sorted_ = workspace.take<KeyType>(sorted_room(parameters.k));
  }

  T* scratch() { return converted_; }

  void run(const T* row, T* values, std::int32_t* indices) {
    const T* ranked = row;
    if (sizes_) {
      for (index_t i = 0; i < columns_; ++i) sizes_[i] = std::abs(row[i]);
      ranked = sizes_;
    }
    T bound;
    const index_t count = lower_bound(ranked, bound) ? collect(ranked, bound) : collect_all(ranked);
    const index_t k = parameters_.k;
    sort_largest(keys_, count, k, sorted_);
    for (index_t i = 0; i < k; ++i) {
      const std::int32_t column = Key<T>::column(sorted_[i]);
      const T value = row[column];
      values[i] = parameters_.relu && value <= 0 ? T(0) : value;
      if (indices) indices[i] = column;
    }
  }

 private:
  static constexpr index_t kMostGroups = 4096;

  // The k-th largest of the maxima of disjoint groups: k entries reach it. About 2 k groups leave some 1.4 k entries
  // above the bound if large ones lie anywhere. False where there are too few groups, or a NaN, which has no place in
  // comparisons.
  bool lower_bound(const T* ranked, T& bound) {
    constexpr index_t lanes = kLanes<T>;
    const index_t vectors = columns_ / lanes, wanted = (2 * parameters_.k + lanes - 1) / lanes;
    if (vectors < wanted || wanted * lanes * 2 > kMostGroups) return false;
    const index_t length = vectors / wanted;
    Mask<T> nan{};
    index_t groups = 0;
    for (index_t begin = 0; begin < vectors; begin += length, groups += lanes) {
      Vec<T> most = load(ranked + begin * lanes);
      nan |= most != most;
      for (index_t i = begin + 1; i < std::min(vectors, begin + length); ++i) {
        const Vec<T> entries = load(ranked + i * lanes);
        nan |= entries != entries;
        most = entries > most ? entries : most;
      }
      store(maxima_ + groups, most);
    }
    bool bad = any<T>(nan);
    for (index_t i = vectors * lanes; i < columns_; ++i) bad |= ranked[i] != ranked[i];
    if (bad) return false;
    bound = kth_largest(groups);
    return true;
  }

  T kth_largest(index_t groups) {
    const index_t last = parameters_.k - 1;
    if (groups > kFewEntries) {
      std::nth_element(maxima_, maxima_ + last, maxima_ + groups, std::greater<>());
      return maxima_[last];
    }
    T least = std::numeric_limits<T>::infinity();
    for (index_t i = 0; i < groups; ++i) {
      const T among_largest = larger(maxima_, groups, maxima_[i]) <= last ? maxima_[i] : least;
      least = std::min(least, among_largest);
    }
    return least;
  }

  // All entries above the bound and, where enough equal it, the first k of these. Returns how many.
  index_t collect(const T* ranked, T bound) {
    index_t count = 0, equal = 0, column = 0;
    const auto look_at = [&](index_t i) {
      if (ranked[i] > bound || equal++ < parameters_.k) keys_[count++] = Key<T>::of(ranked[i], i);
    };
    constexpr index_t lanes = kLanes<T>;
    const Vec<T> bounds = broadcast(bound);
    for (; column + lanes <= columns_ && equal < parameters_.k; column += lanes) {
      for (unsigned found = lanes_of<T>(load(ranked + column) >= bounds); found != 0; found &= found - 1) {
        look_at(column + __builtin_ctz(found));
      }
    }
    for (; column + lanes <= columns_; column += lanes) {
      for (unsigned found = lanes_of<T>(load(ranked + column) > bounds); found != 0; found &= found - 1) {
        look_at(column + __builtin_ctz(found));
      }
    }
    for (; column < columns_; ++column) {
      if (ranked[column] >= bound) look_at(column);
    }
    return count;
  }

  index_t collect_all(const T* ranked) {
    for (index_t i = 0; i < columns_; ++i) keys_[i] = Key<T>::of(ranked[i], i);
    return columns_;
  }

  index_t columns_;
  const TopkParameters& parameters_;
  T* converted_;
  T* sizes_;
  T* maxima_;
  KeyType* keys_;
  KeyType* sorted_;
};

}  // namespace

void topk_rows_cpu(const TensorView& x, const TensorView& values, const TensorView* indices,
                   const TopkParameters& parameters, int threads) {
  dispatch_float(values.dtype, "topk_rows", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(x, 2), rows = x.size(-2), columns = x.size(-1), k = parameters.k;
    constexpr index_t kBlock = 8;  // rows
    const index_t blocks = (rows + kBlock - 1) / kBlock;
    const int used = useful_threads(2.0 * static_cast<double>(x.numel()), threads);
    parallel_for(items * blocks, used, [&](index_t task) {
      const index_t item = task / blocks, first = task % blocks * kBlock;
      Workspace workspace;
      Selection<T> selection(columns, parameters, workspace);
      const Rows<T> from(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1));
      for (index_t row = first; row < std::min(rows, first + kBlock); ++row) {
        const index_t at = (item * rows + row) * k;
        selection.run(from.read(row, 0, columns, selection.scratch()), values.ptr<T>() + at,
                      indices ? indices->ptr<std::int32_t>() + at : nullptr);
      }
    });
  });
}

}  // namespace subspan
