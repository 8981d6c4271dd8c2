#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/parallel.h"
#include "core/stream.h"
#include "ops/sparse/signs.h"
#include "ops/sparse/thresholds.h"

namespace subspan {
namespace {

// A task has some rows of a strip of columns, whose thresholds are read once and whose sums stay in the first-level
// cache. Sums down the columns are those of blocks of rows, then of the blocks in order, for any number of threads.
constexpr index_t kColumns = 2048, kRows = 4, kBlockRows = 128;

// Each form says what an entry becomes, and what it adds to the gradient of its threshold.
template <class T>
struct Jump {
  T half_width;

  Mask<T> above(Vec<T> x, Vec<T> t) const { return x > t; }
  Mask<T> below(Vec<T> x, Vec<T> t) const { return x <= t; }
  Vec<T> kept(Vec<T> x, Vec<T>) const { return x; }
  Vec<T> slope(Vec<T> x, Vec<T> t, Vec<T> g) const {
    const Vec<T> distance = x - t;
    return magnitude<T>(distance) < half_width ? g : distance != distance ? distance : Vec<T>{};
  }
  // Of a sum of slopes. A threshold may be infinite.
  T finish(T sum, T t) const { return sum == 0 ? T(0) : -t / (2 * half_width) * sum; }
};

template <class T>
struct Soft {
  Mask<T> above(Vec<T> x, Vec<T> t) const { return magnitude<T>(x) > t; }
  Mask<T> below(Vec<T> x, Vec<T> t) const { return magnitude<T>(x) <= t; }
  Vec<T> kept(Vec<T> x, Vec<T> t) const { return sign<T>(x) * (magnitude<T>(x) - t); }
  Vec<T> slope(Vec<T> x, Vec<T> t, Vec<T> g) const {
    return above(x, t) ? sign<T>(x) * g : below(x, t) ? Vec<T>{} : x + t;
  }
  T finish(T sum, T) const { return -sum; }
};

// What is above its threshold, 0 for what is not, and NaN for what has no order.
template <class T, class Form>
inline Vec<T> cut_off(const Form& form, Vec<T> x, Vec<T> t, Vec<T> value) {
  return form.above(x, t) ? value : form.below(x, t) ? Vec<T>{} : x + t;
}

// Writes value(begin, load) of whole vectors and of the rest of a row, past the caches where the array is large.
template <class T, class Value>
inline void write(T* to, index_t count, bool streams, Value&& value) {
  constexpr index_t lanes = kLanes<T>;
  const auto part = [&](index_t begin, index_t length) {
    store_entries(to + begin, value(begin, [=](const T* from) { return load_partial(from + begin, length); }), length);
  };
  index_t i = streams ? std::min(count, entries_to_alignment(to)) : 0;
  if (i > 0) part(0, i);
  for (; i + lanes <= count; i += lanes) {
    const Vec<T> result = value(i, [i](const T* from) { return load(from + i); });
    streams ? stream(to + i, result) : store(to + i, result);
  }
  if (i < count) part(i, count - i);
  if (streams) end_stream();
}

template <class T>
class Matrices {
 public:
  Matrices(const TensorView& x, const TensorView& threshold)
      : x_(x), threshold_(threshold), rows_(x.size(-2)), columns_(x.size(-1)) {}

  Rows<T> x(index_t item) const { return rows_of(x_, item); }
  static Rows<T> rows_of(const TensorView& array, index_t item) {
    return {batch_item(array, 2, item), array.dtype, array.step(-2), array.step(-1)};
  }
  const T* thresholds(index_t item, index_t column, index_t count, T* scratch) const {
    const index_t step = threshold_.size(-1) == 1 ? 0 : threshold_.step(-1);
    return Rows<T>(batch_item(threshold_, 1, item), threshold_.dtype, 0, step).read(0, column, count, scratch);
  }
  index_t items() const { return batch_count(x_, 2); }
  index_t rows() const { return rows_; }
  index_t columns() const { return columns_; }
  index_t strips() const { return (columns_ + kColumns - 1) / kColumns; }
  bool one_threshold() const { return threshold_.size(-1) == 1; }
  bool streams() const { return x_.numel() * static_cast<index_t>(sizeof(T)) >= static_cast<index_t>(kFreshBytes); }

  // body(item, first row, rows, first column, columns) for every piece.
  template <class Body>
  void for_each_piece(index_t block, int threads, Body&& body) const {
    const index_t blocks = (rows_ + block - 1) / block, count = strips();
    parallel_for(items() * blocks * count, threads, [&](index_t task) {
      const index_t row = task / count % blocks * block, column = task % count * kColumns;
      body(task / count / blocks, row, std::min(block, rows_ - row), column, std::min(kColumns, columns_ - column));
    });
  }

 private:
  const TensorView& x_;
  const TensorView& threshold_;
  index_t rows_, columns_;
};

template <class T, class Form>
void run_values(const Form& form, const Matrices<T>& in, T* out, int threads) {
  in.for_each_piece(kRows, threads, [&](index_t item, index_t row, index_t rows, index_t column, index_t columns) {
    alignas(64) T scratch[kColumns], thresholds[kColumns];
    const Rows<T> from = in.x(item);
    const T* t = in.thresholds(item, column, columns, thresholds);
    for (index_t i = row; i < row + rows; ++i) {
      const T* x = from.read(i, column, columns, scratch);
      write(out + (item * in.rows() + i) * in.columns() + column, columns, in.streams(),
            [&](index_t, auto&& entries_of) {
              const Vec<T> entries = entries_of(x), limits = entries_of(t);
              return cut_off<T>(form, entries, limits, form.kept(entries, limits));
            });
    }
  });
}

template <class T, class Form>
class Gradient {
 public:
  Gradient(const Form& form, const Matrices<T>& in, const TensorView& upstream, T* dx, T* dt)
      : form_(form), in_(in), upstream_(upstream), dx_(dx), dt_(dt) {
    blocks_ = (in.rows() + kBlockRows - 1) / kBlockRows;
    step_ = (in.columns() + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  }

  void run(int threads) {
    Workspace workspace;
    if (dt_) sums_ = workspace.take<T>(in_.items() * blocks_ * step_);
    in_.for_each_piece(dt_ ? kBlockRows : kRows, threads, [&](auto... place) { run_piece(place...); });
    if (dt_) parallel_for(in_.items(), threads, [&](index_t item) { finish(item); });
  }

 private:
  T* sums(index_t item, index_t block) const { return sums_ + (item * blocks_ + block) * step_; }

  void run_piece(index_t item, index_t row, index_t rows, index_t column, index_t columns) const {
    alignas(64) T scratch[kColumns], upstreams[kColumns], thresholds[kColumns], sums[kColumns + kLanes<T>];
    const Rows<T> from = in_.x(item), upstream = Matrices<T>::rows_of(upstream_, item);
    const T* t = in_.thresholds(item, column, columns, thresholds);
    const bool constant = upstream_.step(-1) == 0;  // along a row, as the gradient of a sum is given
    if (dt_) std::fill_n(sums, columns + kLanes<T>, T(0));
    for (index_t i = row; i < row + rows; ++i) {
      const T* x = from.read(i, column, columns, scratch);
      const T* g = upstream.read(i, column, constant ? 1 : columns, upstreams);
      if (constant) {
        std::fill_n(upstreams, columns, T(*g));
        g = upstreams;
      }
      T* to = dx_ + (item * in_.rows() + i) * in_.columns() + column;
      write(to, columns, in_.streams(), [&](index_t begin, auto&& entries_of) {
        const Vec<T> entries = entries_of(x), limits = entries_of(t), up = entries_of(g);
        // Lanes beyond the columns have no upstream, and so no slope.
        if (dt_) store(sums + begin, load(sums + begin) + form_.slope(entries, limits, up));
        return cut_off<T>(form_, entries, limits, up);
      });
    }
    if (dt_) std::copy_n(sums, columns, this->sums(item, row / kBlockRows) + column);
  }

  void finish(index_t item) const {
    alignas(64) T totals[kColumns], thresholds[kColumns];
    double all = 0;
    for (index_t column = 0; column < in_.columns(); column += kColumns) {
      const index_t columns = std::min(kColumns, in_.columns() - column);
      const T* t = in_.thresholds(item, column, columns, thresholds);
      std::fill_n(totals, columns, T(0));
      for (index_t block = 0; block < blocks_; ++block) {
        const T* part = sums(item, block) + column;
        for (index_t i = 0; i < columns; ++i) totals[i] += part[i];
      }
      for (index_t i = 0; i < columns; ++i) {
        all += static_cast<double>(totals[i]);
        if (!in_.one_threshold()) dt_[item * in_.columns() + column + i] = form_.finish(totals[i], t[i]);
      }
    }
    if (in_.one_threshold()) {
      T scratch;
      dt_[item] = form_.finish(static_cast<T>(all), *in_.thresholds(item, 0, 1, &scratch));
    }
  }

  const Form& form_;
  const Matrices<T>& in_;
  const TensorView& upstream_;
  T* dx_;
  T* dt_;
  T* sums_ = nullptr;
  index_t blocks_, step_;
};

template <class T, class Run>
void with_form(ThresholdForm form, double bandwidth, Run&& run) {
  if (form == ThresholdForm::jump) {
    run(Jump<T>{static_cast<T>(bandwidth / 2)});
  } else {
    run(Soft<T>{});
  }
}

}  // namespace

void cut_off_cpu(const TensorView& x, const TensorView& threshold, const TensorView& out, ThresholdForm form,
                 int threads) {
  dispatch_float(out.dtype, "threshold", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Matrices<T> in(x, threshold);
    const int used = useful_threads(static_cast<double>(x.numel()), threads);
    with_form<T>(form, 0, [&](const auto& kind) { run_values<T>(kind, in, out.ptr<T>(), used); });
  });
}

void cut_off_gradient_cpu(const TensorView& upstream, const TensorView& x, const TensorView& threshold,
                          const TensorView& dx, const TensorView* dt, ThresholdForm form, double bandwidth,
                          int threads) {
  dispatch_float(dx.dtype, "threshold", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Matrices<T> in(x, threshold);
    const int used = useful_threads(2.0 * static_cast<double>(x.numel()), threads);
    with_form<T>(form, bandwidth, [&](const auto& kind) {
      Gradient<T, std::decay_t<decltype(kind)>>(kind, in, upstream, dx.ptr<T>(), dt ? dt->ptr<T>() : nullptr).run(used);
    });
  });
}

}  // namespace subspan
