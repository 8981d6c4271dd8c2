#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/parallel.h"
#include "core/stream.h"
#include "ops/sparse/signed_rows.h"
#include "ops/sparse/signs.h"

namespace subspan {
namespace {

// Strips are long, since their ends share cache lines; those that are converted on the way stay in the first-level
// cache.
constexpr index_t kRows = 4, kColumns = 1 << 15, kConvertedColumns = 1024;

template <class T>
class Task {
 public:
  Task(const TensorView& x, const TensorView& factor, const TensorView* row_mask, const TensorView& upstream,
       const TensorView& out, double slope)
      : x_(x),
        factor_(factor),
        mask_(row_mask),
        upstream_(upstream),
        slope_(static_cast<T>(slope)),
        out_(out.ptr<T>()),
        streams_(out.numel() * sizeof(T) >= kFreshBytes) {}

  index_t count() const { return batch_count(x_, 2) * blocks() * strips(); }

  void run(index_t task) const {
    const index_t item = task / (blocks() * strips()), rest = task % (blocks() * strips());
    const index_t row = rest / strips() * kRows, column = rest % strips() * kColumns;
    const index_t rows = std::min(kRows, x_.size(-2) - row), columns = std::min(kColumns, x_.size(-1) - column);
    alignas(64) T factors[kConvertedColumns], scratch[kConvertedColumns];
    const Rows<T> factor(batch_item(factor_, 1, item), factor_.dtype, 0, factor_.step(-1));
    const Rows<T> from(batch_item(x_, 2, item), x_.dtype, x_.step(-2), x_.step(-1));
    const auto* mask = mask_ ? static_cast<const std::int32_t*>(batch_item(*mask_, 1, item)) : nullptr;
    const T upstream = *static_cast<const T*>(batch_item(upstream_, 0, item));
    const index_t width = from.in_place() && factor.in_place() ? kColumns : kConvertedColumns;
    for (index_t i = row; i < row + rows; ++i) {
      T* to = out_ + (item * x_.size(-2) + i) * x_.size(-1);
      if (mask && mask[i * mask_->step(-1)] == 0) {
        std::fill_n(to + column, columns, T(0));
        continue;
      }
      for (index_t c = column; c < column + columns; c += width) {
        const index_t count = std::min(width, column + columns - c);
        const T* x = from.read(i, c, count, scratch);
        const T* f = factor.read(0, c, count, factors);
        slope_ != 0 ? write<true>(x, f, upstream, count, to + c) : write<false>(x, f, upstream, count, to + c);
      }
    }
  }

 private:
  index_t blocks() const { return (x_.size(-2) + kRows - 1) / kRows; }
  index_t strips() const { return (x_.size(-1) + kColumns - 1) / kColumns; }

  template <bool Sloped>
  void write(const T* x, const T* factor, T upstream, index_t columns, T* to) const {
    constexpr index_t lanes = kLanes<T>;
    const auto value = [upstream, slope = upstream * slope_](Vec<T> entries, Vec<T> factors) {
      const Vec<T> signed_factor = upstream * factors * sign<T>(entries);
      return Sloped ? signed_factor + slope * entries : signed_factor;
    };
    const auto part = [&](index_t begin, index_t count) {
      store_entries(to + begin, value(load_partial(x + begin, count), load_partial(factor + begin, count)), count);
    };
    const index_t head = streams_ ? std::min(columns, entries_to_alignment(to)) : 0;
    if (head > 0) part(0, head);
    index_t i = head;
    if (streams_) {
      for (; i + lanes <= columns; i += lanes) stream(to + i, value(load(x + i), load(factor + i)));
      end_stream();
    } else {
      for (; i + lanes <= columns; i += lanes) store(to + i, value(load(x + i), load(factor + i)));
    }
    if (i < columns) part(i, columns - i);
  }

  const TensorView& x_;
  const TensorView& factor_;
  const TensorView* mask_;
  const TensorView& upstream_;
  T slope_;
  T* out_;
  bool streams_;
};

}  // namespace

void signed_rows_cpu(const TensorView& x, const TensorView& factor, const TensorView* row_mask,
                     const TensorView& upstream, const TensorView& out, double slope, int threads) {
  dispatch_float(out.dtype, "signed_rows", [&](auto tag) {
    const Task<typename decltype(tag)::type> task(x, factor, row_mask, upstream, out, slope);
    const int used = useful_threads(static_cast<double>(x.numel()), threads);
    parallel_for(task.count(), used, [&](index_t i) { task.run(i); });
  });
}

}  // namespace subspan
