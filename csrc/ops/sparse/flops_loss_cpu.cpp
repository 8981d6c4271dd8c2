#include "core/dispatch.h"
#include "core/parallel.h"
#include "ops/sparse/flops_loss.h"
#include "ops/sparse/signs.h"

namespace subspan {
namespace {

// Sums down the columns are taken of kBlockRows rows at a time, within them of kPartRows, within those of kGroup, which
// are read together and added in pairs: few roundings add up, and the same bits come out for any number of threads.
constexpr index_t kBlockRows = 1024, kPartRows = 64, kGroup = 8, kColumns = 2048, kConvertedColumns = 256;

template <class T>
constexpr index_t padded(index_t columns) {
  return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// One activation matrix of a batch, and the sums of each block of its rows: of |x|, and of x^2 where they are wanted.
template <class T>
class ColumnSums {
 public:
  ColumnSums(const TensorView& x, index_t item, const std::int32_t* mask, index_t mask_step, bool squares, bool counts,
             int threads, Workspace& workspace)
      : rows_(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1)),
        mask_(mask),
        mask_step_(mask_step),
        count_(x.size(-2)),
        columns_(x.size(-1)),
        counts_(counts) {
    const index_t elements = blocks() * padded<T>(columns_);
    sums_ = workspace.take<T>(elements);
    squares_ = squares ? workspace.take<T>(elements) : nullptr;
    const index_t share = columns_ * blocks() / (2 * threads);  // two tasks or more for every thread
    strip_ = std::clamp(share / kConvertedColumns * kConvertedColumns, kConvertedColumns, kColumns);
  }

  index_t rows() const { return count_; }
  index_t strips() const { return (columns_ + strip_ - 1) / strip_; }
  index_t tasks() const { return blocks() * strips(); }

  void run(index_t task) const {
    const index_t block = task / strips(), begin = task % strips() * strip_;
    const index_t end = std::min(columns_, begin + strip_);
    const index_t width = rows_.in_place() ? strip_ : kConvertedColumns;
    for (index_t column = begin; column < end; column += width) {
      if (counts_) {
        add<true, false>(block, column, std::min(width, end - column));
      } else if (squares_) {
        add<false, true>(block, column, std::min(width, end - column));
      } else {
        add<false, false>(block, column, std::min(width, end - column));
      }
    }
  }

  // Sums over all rows, of a vector of columns.
  Vec<T> sum(index_t column) const { return over_blocks(sums_, column); }
  Vec<T> square(index_t column) const { return over_blocks(squares_ ? squares_ : sums_, column); }  // counts: 1^2 = 1

 private:
  index_t blocks() const { return std::max<index_t>(1, (count_ + kBlockRows - 1) / kBlockRows); }

  Vec<T> over_blocks(const T* sums, index_t column) const {
    Vec<T> total{};
    for (index_t block = 0; block < blocks(); ++block) total += load(sums + block * padded<T>(columns_) + column);
    return total;
  }

  template <bool Counts, bool Squares>
  void add(index_t block, index_t column, index_t width) const {
    static constexpr T kZeros[kColumns] = {};
    alignas(64) T scratch[kGroup * kConvertedColumns], part[(Squares ? 2 : 1) * kColumns];
    const index_t at = block * padded<T>(columns_) + column, end = std::min(count_, (block + 1) * kBlockRows);
    std::fill_n(sums_ + at, padded<T>(width), T(0));
    if (Squares) std::fill_n(squares_ + at, padded<T>(width), T(0));
    for (index_t first = block * kBlockRows; first < end; first += kPartRows) {
      std::fill_n(part, (Squares ? 2 : 1) * kColumns, T(0));
      for (index_t row = first; row < std::min(end, first + kPartRows); row += kGroup) {
        const T* group[kGroup];
        for (index_t i = 0; i < kGroup; ++i) {
          const bool absent = row + i >= end || (mask_ && mask_[(row + i) * mask_step_] == 0);
          group[i] = absent ? kZeros : rows_.read(row + i, column, width, scratch + i * kConvertedColumns);
        }
        add_group<Counts, Squares>(group, width, part);
      }
      for (index_t i = 0; i < padded<T>(width); i += kLanes<T>) {
        store(sums_ + at + i, load(sums_ + at + i) + load(part + i));
        if (Squares) store(squares_ + at + i, load(squares_ + at + i) + load(part + kColumns + i));
      }
    }
  }

  template <bool Counts, bool Squares>
  static void add_group(const T* const (&group)[kGroup], index_t width, T* part) {
    constexpr index_t lanes = kLanes<T>;
    index_t column = 0;
    const auto add_vector = [&](auto&& entries) {
      Vec<T> sums[kGroup], squares[kGroup];
      for (index_t i = 0; i < kGroup; ++i) {
        const Vec<T> x = entries(group[i] + column);
        sums[i] = Counts ? one_where_not_zero<T>(x) : magnitude<T>(x);
        if (Squares) squares[i] = x * x;
      }
      store(part + column, load(part + column) + in_pairs(sums));
      if (Squares) store(part + kColumns + column, load(part + kColumns + column) + in_pairs(squares));
    };
    for (; column + lanes <= width; column += lanes) add_vector([](const T* from) { return load(from); });
    if (column < width) add_vector([&](const T* from) { return load_partial(from, width - column); });
  }

  static Vec<T> in_pairs(const Vec<T> (&v)[kGroup]) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }

  Rows<T> rows_;
  const std::int32_t* mask_;
  index_t mask_step_, count_, columns_, strip_;
  bool counts_;
  T* sums_;
  T* squares_;
};

// Adds vectors up in T a few at a time, and those sums in double.
template <class T>
class LongSum {
 public:
  void add(Vec<T> v) {
    part_ += v;
    if (++parts_ == 64) fold();
  }
  double total() {
    fold();
    return total_;
  }

 private:
  void fold() {
    for (index_t lane = 0; lane < kLanes<T>; ++lane) total_ += static_cast<double>(part_[lane]);
    part_ = Vec<T>{};
    parts_ = 0;
  }
  Vec<T> part_{};
  int parts_ = 0;
  double total_ = 0;
};

template <class T>
class Item {
 public:
  Item(const FlopsInputs& in, const FlopsOutputs& out, const FlopsParameters& parameters, index_t item)
      : in_(in), out_(out), parameters_(parameters), item_(item), columns_(in.x.size(-1)) {}

  void run(int threads) {
    Workspace workspace;
    const auto* mask = in_.row_mask ? static_cast<const std::int32_t*>(batch_item(*in_.row_mask, 1, item_)) : nullptr;
    const bool squares = parameters_.form == FlopsForm::pairs && !parameters_.counts;
    const ColumnSums<T> x(in_.x, item_, mask, mask ? in_.row_mask->step(-1) : 0, squares, parameters_.counts, threads,
                          workspace);
    const ColumnSums<T> y(in_.y ? *in_.y : in_.x, item_, nullptr, 0, false, parameters_.counts, threads, workspace);
    const index_t own = x.tasks(), all = own + (in_.y ? y.tasks() : 0);
    parallel_for(all, threads, [&](index_t task) { task < own ? x.run(task) : y.run(task - own); });
    if (parameters_.form == FlopsForm::pairs) {
      finish_pairs(x);
    } else {
      finish_means(x, in_.y ? &y : nullptr);
    }
  }

 private:
  void finish_pairs(const ColumnSums<T>& x) const {
    const double n = static_cast<double>(x.rows()), pairs = n * (n - 1);
    const T scale = static_cast<T>(pairs > 0 ? 1 / pairs : 0);
    LongSum<T> sum;
    for (index_t column = 0; column < columns_; column += kLanes<T>) {
      const Vec<T> s = x.sum(column);
      sum.add((s * s - x.square(column)) * scale);
      put(out_.x_factor, column, 2 * scale * s);
    }
    finish(sum.total());
  }

  void finish_means(const ColumnSums<T>& x, const ColumnSums<T>* y) const {
    const T x_share = share_of(x.rows()), y_share = y ? share_of(y->rows()) : T(0);
    const T decay = static_cast<T>(parameters_.decay), rest = static_cast<T>(1 - parameters_.decay);
    const bool l1 = parameters_.form == FlopsForm::l1;
    LongSum<T> sum;
    for (index_t column = 0; column < columns_; column += kLanes<T>) {
      Vec<T> mean = x.sum(column) * x_share;
      if (in_.running) mean = decay * running(column) + rest * mean;
      const Vec<T> other = l1 ? broadcast<T>(1) : y ? y->sum(column) * y_share : mean;
      sum.add(l1 ? mean : mean * other);
      put(out_.means, column, mean);
      put(out_.x_factor, column, (l1 || y ? x_share : 2 * x_share) * other);
      if (y) put(out_.y_factor, column, y_share * mean);
    }
    finish(sum.total());
  }

  static T share_of(index_t rows) { return static_cast<T>(1.0 / static_cast<double>(std::max<index_t>(rows, 1))); }

  Vec<T> running(index_t column) const {
    const auto* from = static_cast<const T*>(batch_item(*in_.running, 1, item_));
    T entries[kLanes<T>] = {};
    const index_t step = in_.running->step(-1), count = std::min<index_t>(kLanes<T>, columns_ - column);
    for (index_t i = 0; i < count; ++i) entries[i] = from[(column + i) * step];
    return load(entries);
  }

  void put(const TensorView* array, index_t column, Vec<T> values) const {
    if (array) store_entries(array->ptr<T>() + item_ * columns_ + column, values, columns_ - column);
  }

  // What is not finite is NaN, and so are the gradients.
  void finish(double total) const {
    const T loss = static_cast<T>(total), nan_or_zero = loss - loss;
    out_.loss.ptr<T>()[item_] = loss + nan_or_zero;
    if (nan_or_zero == 0) return;
    for (const TensorView* factor : {out_.x_factor, out_.y_factor}) {
      if (factor) std::fill_n(factor->ptr<T>() + item_ * columns_, columns_, nan_or_zero);
    }
  }

  const FlopsInputs& in_;
  const FlopsOutputs& out_;
  const FlopsParameters& parameters_;
  index_t item_, columns_;
};

}  // namespace

void flops_loss_cpu(const FlopsInputs& in, const FlopsOutputs& out, const FlopsParameters& parameters, int threads) {
  dispatch_float(out.loss.dtype, "flops_loss", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(in.x, 2), entries = in.x.numel() + (in.y ? in.y->numel() : 0);
    const int used = useful_threads(static_cast<double>(entries), threads);
    if (items >= threads) {
      parallel_for(items, used, [&](index_t item) { Item<T>(in, out, parameters, item).run(1); });
    } else {
      for (index_t item = 0; item < items; ++item) Item<T>(in, out, parameters, item).run(used);
    }
  });
}

}  // namespace subspan
