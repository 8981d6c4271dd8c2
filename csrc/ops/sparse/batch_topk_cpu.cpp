#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/sparse/batch_topk.h"
#include "ops/sparse/selection.h"

namespace subspan {
namespace {

template <class T>
struct Entry {
  T value;
  std::int32_t column;
  index_t row;
};

// The `wanted`-th largest of the values, as an integer, and how many are larger.
struct Cut {
  index_t order, larger;
};
template <class T>
Cut find_cut(const std::vector<const std::vector<Entry<T>>*>& lists, index_t wanted) {
  std::vector<Bits<T>> orders;
  for (const auto* list : lists) {
    for (const Entry<T>& entry : *list) orders.push_back(Key<T>::order(entry.value));
  }
  std::nth_element(orders.begin(), orders.begin() + (wanted - 1), orders.end(), std::greater<>());
  const Bits<T> cut = orders[wanted - 1];
  return {cut, std::count_if(orders.begin(), orders.begin() + wanted, [=](Bits<T> order) { return order > cut; })};
}

// Of entries that come in order, those that may be among the `wanted` largest.
template <class T>
class Collection {
 public:
  Collection(index_t wanted, T bound) : wanted_(wanted), equal_(wanted), bound_(bound) {}

  const std::vector<Entry<T>>& entries() const { return entries_; }

  void add_row(const T* values, index_t columns, index_t row) {
    index_t column = 0;
    constexpr unsigned all = (1u << kLanes<T>)-1;
    for (; column + kLanes<T> <= columns && !closed_; column += kLanes<T>) {
      const Vec<T> v = load(values + column);
      unsigned found = all & ~(equal_ > 0 ? lanes_of<T>(v < bound_) : lanes_of<T>(v <= bound_));
      for (; found != 0; found &= found - 1) {
        const index_t at = column + __builtin_ctz(found);
        add({values[at], static_cast<std::int32_t>(at), row});
      }
    }
    for (; column < columns; ++column) add({values[column], static_cast<std::int32_t>(column), row});
  }

 private:
  // What the vectors let through; the bound may have risen since.
  void add(const Entry<T>& entry) {
    if (closed_ || entry.value < bound_ || (entry.value == bound_ && --equal_ < 0)) return;
    entries_.push_back(entry);
    if (static_cast<index_t>(entries_.size()) >= 4 * wanted_ + 1024) prune();
  }

  void prune() {
    const Cut cut = find_cut<T>({&entries_}, wanted_);
    index_t ties = wanted_ - cut.larger;
    const auto dropped = [&](const Entry<T>& entry) {
      const index_t order = Key<T>::order(entry.value);
      if (order == cut.order) bound_ = entry.value;
      return order < cut.order || (order == cut.order && --ties < 0);
    };
    entries_.erase(std::remove_if(entries_.begin(), entries_.end(), dropped), entries_.end());
    equal_ = 0;  // later ones do not come before these
    closed_ = bound_ != bound_;
  }

  index_t wanted_, equal_;
  T bound_;
  bool closed_ = false;
  std::vector<Entry<T>> entries_;
};

// Two readings of the matrix: the maxima of groups of entries bound the last of the wanted ones from below, and what
// reaches the bound is collected and compared.
template <class T>
class Item {
 public:
  Item(const TensorView& x, index_t item, index_t k)
      : x_(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1)),
        rows_(x.size(-2)),
        columns_(x.size(-1)),
        k_(k),
        wanted_(k * x.size(-2)) {}

  void run(int threads, bool relu, T* values, std::int32_t* indices, std::int32_t* counts) const {
    const T bound = lower_bound(threads);
    std::vector<Collection<T>> parts(static_cast<std::size_t>(threads), Collection<T>(wanted_, bound));
    parallel_for(
        threads, threads,
        [&](index_t part) {
          Workspace workspace;
          T* scratch = workspace.take<T>(columns_);
          for (index_t row = rows_ * part / threads; row < rows_ * (part + 1) / threads; ++row) {
            parts[static_cast<std::size_t>(part)].add_row(x_.read(row, 0, columns_, scratch), columns_, row);
          }
        },
        1);
    std::vector<const std::vector<Entry<T>>*> lists;
    for (const Collection<T>& part : parts) lists.push_back(&part.entries());
    const Cut cut = find_cut<T>(lists, wanted_);
    index_t ties = wanted_ - cut.larger;
    if (counts) std::fill_n(counts, rows_, 0);
    for (const auto* list : lists) {
      for (const Entry<T>& entry : *list) {
        const index_t order = Key<T>::order(entry.value);
        if (order < cut.order || (order == cut.order && --ties < 0)) continue;
        *values++ = relu && entry.value <= 0 ? T(0) : entry.value;
        if (indices) *indices++ = entry.column;
        if (counts) ++counts[entry.row];
      }
    }
  }

 private:
  // The last of as many maxima as there are wanted entries. About twice as many groups leave few entries above it.
  T lower_bound(int threads) const {
    constexpr index_t lanes = kLanes<T>;
    constexpr T least = -std::numeric_limits<T>::infinity();
    const index_t vectors = columns_ / lanes, groups = std::min(vectors, (2 * k_ + lanes - 1) / lanes);
    if (groups * lanes < k_) return least;
    Workspace workspace;
    T* maxima = workspace.take<T>(rows_ * groups * lanes);
    parallel_for(rows_, threads, [&](index_t row) {
      Workspace own;
      const T* from = x_.read(row, 0, columns_, own.take<T>(columns_));
      for (index_t group = 0; group < groups; ++group) {
        Vec<T> most = broadcast(least);
        for (index_t i = vectors * group / groups; i < vectors * (group + 1) / groups; ++i) {
          const Vec<T> entries = load(from + i * lanes);
          most = entries > most ? entries : most;
        }
        store(maxima + (row * groups + group) * lanes, most);
      }
    });
    std::nth_element(maxima, maxima + (wanted_ - 1), maxima + rows_ * groups * lanes, std::greater<>());
    return maxima[wanted_ - 1];
  }

  Rows<T> x_;
  index_t rows_, columns_, k_, wanted_;
};

}  // namespace

void batch_topk_cpu(const TensorView& x, const TensorView& values, const TensorView* indices, const TensorView* counts,
                    index_t k, bool relu, int threads) {
  dispatch_float(values.dtype, "batch_topk", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(x, 2), rows = x.size(-2);
    if (rows == 0) return;
    const int used = in_forked_child() ? 1 : useful_threads(2.0 * static_cast<double>(rows * x.size(-1)), threads);
    for (index_t item = 0; item < items; ++item) {
      Item<T>(x, item, k)
          .run(used, relu, values.ptr<T>() + item * rows * k,
               indices ? indices->ptr<std::int32_t>() + item * rows * k : nullptr,
               counts ? counts->ptr<std::int32_t>() + item * rows : nullptr);
    }
  });
}

}  // namespace subspan
