#include "core/dispatch.h"
#include "core/pack.h"
#include "ops/sparse/postings.h"
#include "ops/sparse/sparse_scores.h"

namespace subspan {
namespace {

template <class T>
constexpr index_t kBlockRows = kLanes<T>;  // of the support: of a transposed G they share the lines of the cache

// Entries `step` apart of one row of G in one window, at the places of a list, times its values. Four sums, because an
// addition takes as long as four can be begun in.
template <class T>
T sum_along(const typename Postings<T>::List& list, const T* row, index_t step) {
  T sums[4] = {};
  index_t i = 0;
  for (; i + 4 <= list.count; i += 4) {
#pragma GCC unroll 4
    for (index_t k = 0; k < 4; ++k) sums[k] += list.values[i + k] * row[list.rows[i + k] * step];
  }
  for (index_t k = 0; i + k < list.count; ++k) sums[k] += list.values[i + k] * row[list.rows[i + k] * step];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
class Item {
 public:
  Item(const TensorView& G, index_t item, const SparseOperand& support, const Postings<T>& d, T* out)
      : G_(static_cast<const char*>(batch_item(G, 2, item))),
        dtype_(G.dtype),
        row_step_(G.step(-2)),
        column_step_(G.step(-1)),
        support_(support),
        d_(d),
        out_(out) {}

  index_t blocks() const { return (support_.rows() + kBlockRows<T> - 1) / kBlockRows<T>; }

  void run(int threads) {
    const index_t windows = d_.windows(), entries = support_.entries();
    if (windows == 0) {
      std::fill_n(out_, entries, T(0));
    } else if (windows == 1 || blocks() >= threads) {
      parallel_for(blocks(), threads, [&](index_t block) {
        for (index_t window = 0; window < windows; ++window) add(block, window, out_, window > 0);
      });
    } else {  // few rows: windows side by side, added up in the same order
      Workspace workspace;
      T* parts = workspace.take<T>((windows - 1) * entries);
      parallel_for(windows * blocks(), threads, [&](index_t task) {
        const index_t window = task % windows;
        add(task / windows, window, window == 0 ? out_ : parts + (window - 1) * entries, false);
      });
      for (index_t window = 1; window < windows; ++window) {
        const T* part = parts + (window - 1) * entries;
        for (index_t e = 0; e < entries; ++e) out_[e] += part[e];
      }
    }
  }

 private:
  bool own_type() const { return dtype_ == (sizeof(T) == 4 ? DType::f32 : DType::f64); }

  // The sums over one window for a block of rows of the support.
  void add(index_t block, index_t window, T* out, bool add) const {
    const index_t first = block * kBlockRows<T>, count = std::min(kBlockRows<T>, support_.rows() - first);
    const index_t begin = d_.begin_of(window), size = d_.size_of(window);
    Workspace workspace;
    const T* row = nullptr;
    index_t next = 0, step = 1;
    if (own_type() && (column_step_ == 1 || !worth_copying(first, count, window))) {
      row = reinterpret_cast<const T*>(G_) + first * row_step_ + begin * column_step_;
      next = row_step_;
      step = column_step_;
    } else {
      T* copy = workspace.take<T>(kBlockRows<T> * size);
      copy_rows(first, count, begin, size, copy);
      row = copy;
      next = size;
    }
    for (index_t i = 0; i < count; ++i, row += next) sum_row(first + i, window, row, step, out, add);
  }

  void sum_row(index_t i, index_t window, const T* G, index_t step, T* out, bool add) const {
    const SparseOperand::Row row = support_.row(i);
    for_lists(support_, row, d_, window, [&](index_t e, const typename Postings<T>::List& list) {
      const T sum = step == 1 ? sum_along(list, G, 1) : sum_along(list, G, step);
      out[row.first + e] = add ? out[row.first + e] + sum : sum;
    });
  }

  // Whether more entries of G are read than it has lines of the cache.
  bool worth_copying(index_t first, index_t count, index_t window) const {
    index_t reads = 0;
    for (index_t i = first; i < first + count; ++i) {
      const SparseOperand::Row row = support_.row(i);
      for (index_t e = 0; e < row.count; ++e) {
        reads += d_.list(window, d_.slot(support_.column(row, e))).count;
      }
    }
    return reads > d_.size_of(window);
  }

  // Rows of G in the type that is computed in.
  void copy_rows(index_t first, index_t count, index_t begin, index_t size, T* copy) const {
    index_t done = 0;
    if (own_type() && row_step_ == 1 && count == kLanes<T>) {
      const T* from = reinterpret_cast<const T*>(G_) + first + begin * column_step_;
      for (; done + kLanes<T> <= size; done += kLanes<T>) {
        Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
        for (index_t k = 0; k < kLanes<T>; ++k) square[k] = load(from + (done + k) * column_step_);
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (index_t k = 0; k < kLanes<T>; ++k) store(copy + k * size + done, square[k]);
      }
    }
    if (done == size) return;
    const Rows<T> rows(G_, dtype_, row_step_, column_step_);
    for (index_t i = 0; i < count; ++i) {
      T* to = copy + i * size + done;
      const T* from = rows.read(first + i, begin + done, size - done, to);
      if (from != to) std::copy_n(from, size - done, to);
    }
  }

  const char* G_;
  DType dtype_;
  index_t row_step_, column_step_;
  const SparseOperand& support_;
  const Postings<T>& d_;
  T* out_;
};

}  // namespace

void scores_on_support_cpu(const TensorView& G, const SparseArrays& documents, const SparseArrays& places,
                           const TensorView& out, index_t columns, int threads) {
  dispatch_float(out.dtype, "sparse_scores", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for_each_sparse_item(places, documents, threads, [&](index_t item, int used) {
      const SparseOperand support(places, item, columns, "sparse_scores", "Q");
      const SparseOperand d(documents, item, columns, "sparse_scores", "D");
      Workspace workspace;
      const Postings<T> postings(d, columns, used, workspace);
      Item<T>(G, item, support, postings, out.ptr<T>() + item * support.entries()).run(used);
    });
  });
}

}  // namespace subspan
