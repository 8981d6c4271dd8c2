#include <cmath>

#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/product.h"
#include "ops/sparse/matching_pursuit.h"
#include "ops/sparse/pursuit_choice.h"

namespace subspan {
namespace {

constexpr double kGramBytes = 1 << 30;  // the largest W W^T that is formed
constexpr index_t kUpdatedRows = 32;    // whose products with all atoms are formed together

// Whether products with the atoms are updated by rows of W W^T: forming half of that takes atoms^2 d / 2
// multiply-adds, each step after the first then atoms for every row, which is read from memory, in place of atoms d.
bool updates_products(index_t rows, index_t atoms, index_t length, index_t steps, double bytes) {
  constexpr double kRead = 48;  // multiply-adds in the time of reading a number
  const double saved =
      static_cast<double>(rows) * static_cast<double>(steps - 1) * (static_cast<double>(length) - kRead);
  return bytes <= kGramBytes && saved > 0.6 * static_cast<double>(atoms) * static_cast<double>(length);
}

// The finish that stores tiles of the upper triangle of W W^T, and mirrors them.
template <class T>
struct StoreBoth {
  T* gram;
  index_t size;

  template <int Vectors>
  void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
    const index_t rows = std::min<index_t>(kTileRows, size - row);
    for (index_t v = 0; v < Vectors; ++v) {
      const index_t first = column + v * kLanes<T>, count = std::min<index_t>(kLanes<T>, size - first);
      for (index_t i = 0; i < rows; ++i) store_entries(gram + (row + i) * size + first, sums[i][v], count);
      T lanes[kLanes<T>][kTileRows];
      for (index_t i = 0; i < kTileRows; ++i) {
        for (index_t lane = 0; lane < kLanes<T>; ++lane) lanes[lane][i] = sums[i][v][lane];
      }
      for (index_t lane = 0; lane < count; ++lane) std::copy_n(lanes[lane], rows, gram + (first + lane) * size + row);
    }
  }
};

template <class T>
class Pursuit {
 public:
  Pursuit(const TensorView& x, index_t item, const Atoms<T>& atoms, const PursuitParameters& parameters, T* values,
          T* residual, std::int32_t* indices)
      : x_(rows_of<T>(x, item)),
        rows_(x.size(-2)),
        length_(x.size(-1)),
        atoms_(atoms),
        parameters_(parameters),
        values_(values),
        residual_(residual),
        indices_(indices),
        keep_(nullptr, atoms.count(), parameters.by_magnitude) {}

  // The products of all residuals with all atoms at every step.
  void recompute(int threads) const {
    constexpr index_t kMost = 2 * kPanelWidth<T>;
    const index_t share = (rows_ + threads - 1) / threads;
    const index_t block = std::clamp<index_t>(round_up(share, kTileRows), kTileRows, kMost);
    parallel_for((rows_ + block - 1) / block, threads, [&](index_t task) {
      const index_t first = task * block, count = std::min(block, rows_ - first);
      Workspace workspace;
      T* residuals = workspace.take<T>(count * length_);
      for (index_t i = 0; i < count; ++i) read_row(x_, first + i, length_, residuals + i * length_);
      const Panels<T> left{workspace.take<T>(panel_elements<T>(length_, kMost)), length_, kPanelWidth<T>};
      for (index_t step = 0; step < parameters_.steps; ++step) {
        Largest<T> largest[kMost];
        choose_all(residuals, count, left, largest);
        for (index_t i = 0; i < count; ++i) take(first + i, step, largest[i].first, residuals + i * length_);
      }
      for (index_t i = 0; i < count; ++i) finish(first + i, residuals + i * length_);
    });
  }

  // The products are formed once, and updated by rows of the Gram matrix of the atoms.
  void update(const T* gram, int threads) const {
    const index_t padded = round_up(atoms_.count(), kLanes<T>);
    const double longest = longest_atom();
    parallel_for((rows_ + kUpdatedRows - 1) / kUpdatedRows, threads, [&](index_t task) {
      const index_t first = task * kUpdatedRows, count = std::min(kUpdatedRows, rows_ - first);
      Workspace workspace;
      T* products = workspace.take<T>(count * padded);
      const Panels<T> left{workspace.take<T>(panel_elements<T>(length_, kUpdatedRows)), length_,
                           panel_width<T>(kUpdatedRows)};
      pack_rows(x_, first, count, 0, length_, left);
      atoms_.multiply_all(left, count, StoreRows<T>{products, padded, count, padded, false});
      T* residual = workspace.take<T>(length_);
      for (index_t i = 0; i < count; ++i) {
        read_row(x_, first + i, length_, residual);
        update_row(first + i, gram, longest, products + i * padded, residual);
      }
    });
  }

 private:
  // The largest products with the residuals, and where they are.
  void choose_all(const T* residuals, index_t count, const Panels<T>& left, Largest<T>* largest) const {
    const Rows<T> rows(residuals, sizeof(T) == 4 ? DType::f32 : DType::f64, length_, 1);
    pack_rows(rows, 0, count, 0, length_, left);
    atoms_.multiply_all(left, count, KeepLargest<T>(largest, atoms_.count(), parameters_.by_magnitude));
    for (index_t i = 0; i < count; ++i) {
      largest[i].finish();
      if (largest[i].nan()) largest[i].first = first_nan(residuals + i * length_);
    }
  }

  // The first atom whose product is NaN, so that its coefficient shows it.
  index_t first_nan(const T* residual) const {
    Workspace workspace;
    T* scratch = workspace.take<T>(length_);
    for (index_t m = 0; m < atoms_.count(); ++m) {
      const T product = dot(residual, atoms_.rows().read(m, 0, length_, scratch), length_);
      if (product != product) return m;
    }
    return 0;
  }

  T take(index_t row, index_t step, index_t atom, T* residual) const {
    Workspace workspace;
    const T* entries = atoms_.rows().read(atom, 0, length_, workspace.take<T>(length_));
    const index_t at = row * parameters_.steps + step;
    if (indices_) indices_[at] = static_cast<std::int32_t>(atom);
    return values_[at] = take_step(residual, entries, length_, parameters_.relu);
  }

  void finish(index_t row, const T* residual) const {
    if (residual_) std::copy_n(residual, length_, residual_ + row * length_);
  }

  double longest_atom() const {
    Workspace workspace;
    T* scratch = workspace.take<T>(length_);
    double most = 0;
    for (index_t m = 0; m < atoms_.count(); ++m) {
      const T* atom = atoms_.rows().read(m, 0, length_, scratch);
      most = std::max(most, static_cast<double>(dot(atom, atom, length_)));
    }
    return std::sqrt(most);
  }

  // Updated products differ from those that `recompute` forms by at most `error`: a dot product of d terms errs by
  // gamma = d u times the lengths of its factors, which happens to the first products, to every entry of the Gram
  // matrix that was added and to the product it is compared with; and each update of a product and of the residual is
  // rounded. An atom that leads by more than twice the error is the one that would be found; others are looked at.
  void update_row(index_t row, const T* gram, double longest, T* products, T* residual) const {
    const double unit = std::numeric_limits<T>::epsilon() / 2, gamma = 1.1 * unit * static_cast<double>(length_ + 8);
    double lengths = norm(residual), rounded = 0;
    Largest<T> largest;
    scan<false>(products, nullptr, T(0), largest);
    for (index_t step = 0;; ++step) {
      const double now = norm(residual), error = longest * (gamma * (lengths + now) + rounded);
      const T bound = largest.most - static_cast<T>(2.2 * error);
      const bool certain = !largest.nan() && (step == 0 || largest.next < bound);
      const index_t atom = certain ? largest.first : choose_among(products, bound, largest.nan(), residual);
      const T value = take(row, step, atom, residual);
      if (step + 1 == parameters_.steps) break;
      lengths += std::abs(static_cast<double>(value)) * longest;
      rounded += 4 * unit * norm(residual);
      largest = {};
      scan<true>(products, gram + atom * atoms_.count(), value, largest);
    }
    finish(row, residual);
  }

  double norm(const T* vector) const { return std::sqrt(static_cast<double>(dot(vector, vector, length_))); }

  // The largest product; with Update, after subtracting value * gram.
  template <bool Update>
  void scan(T* products, const T* gram, T value, Largest<T>& largest) const {
    const index_t count = atoms_.count();
    index_t m = 0;
    for (; m + kLanes<T> <= count; m += kLanes<T>) {
      Vec<T> own = load(products + m);
      if (Update) {
        own -= value * load(gram + m);
        store(products + m, own);
      }
      keep_.see(largest, own, m);
    }
    if (m < count) {
      Vec<T> own = load_partial(products + m, count - m);
      if (Update) {
        own -= value * load_partial(gram + m, count - m);
        store_entries(products + m, own, count - m);
      }
      keep_.see(largest, own, m);
    }
    largest.finish();
  }

  // The choice of `recompute`: among the atoms whose updated product reaches the bound, or among all if these are many.
  index_t choose_among(const T* products, T bound, bool nan, const T* residual) const {
    constexpr index_t kFew = kLanes<T>;
    index_t found[kFew], count = 0;
    for (index_t m = 0; m < atoms_.count() && count <= kFew && !nan; ++m) {
      const T size = parameters_.by_magnitude ? std::abs(products[m]) : products[m];
      if (size < bound) continue;
      if (count < kFew) found[count] = m;
      ++count;
    }
    Workspace workspace;
    const Panels<T> left{workspace.take<T>(panel_elements<T>(length_, 1)), length_, panel_width<T>(1)};
    Largest<T> largest[kTileRows];
    if (nan || count == 0 || count > kFew) {
      choose_all(residual, 1, left, largest);
      return largest[0].first;
    }
    const Rows<T> own(residual, sizeof(T) == 4 ? DType::f32 : DType::f64, length_, 1);
    pack_rows(own, 0, 1, 0, length_, left);
    const Panels<T> right{workspace.take<T>(panel_elements<T>(length_, count)), length_, panel_width<T>(count)};
    pack_rows(atoms_.rows().gathered(found), 0, count, 0, length_, right);
    Vec<T> sums[kTileRows][1];
    multiply_tile<1>(left.column(0), left.width, right.column(0), right.width, length_, sums);
    KeepLargest<T>(largest, count, parameters_.by_magnitude)(0, 0, sums);
    largest[0].finish();
    return found[largest[0].nan() ? 0 : largest[0].first];
  }

  Rows<T> x_;
  index_t rows_, length_;
  const Atoms<T>& atoms_;
  const PursuitParameters& parameters_;
  T* values_;
  T* residual_;
  std::int32_t* indices_;
  KeepLargest<T> keep_;
};

template <class T>
const T* gram_of(const Atoms<T>& atoms, int threads, Workspace& workspace) {
  const index_t size = atoms.count();
  T* gram = workspace.take<T>(size * size);
  wish_for_huge_pages(gram, static_cast<std::size_t>(size * size) * sizeof(T));
  const index_t panels = panel_count<T>(size), width = atoms.panels().width;
  parallel_for(
      panels, threads,
      [&](index_t task) {
        const index_t p = panels - 1 - task;  // the longest first
        atoms.multiply_panel(atoms.panels(), std::min(size, (p + 1) * width), p, StoreBoth<T>{gram, size});
      },
      1);
  return gram;
}

}  // namespace

void matching_pursuit_cpu(const TensorView& x, const TensorView& W, const TensorView& values,
                          const TensorView* residual, const TensorView* indices, const PursuitParameters& parameters,
                          int threads) {
  dispatch_float(values.dtype, "matching_pursuit", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(x, 2), rows = x.size(-2), length = x.size(-1), atoms = W.size(-2);
    const index_t steps = parameters.steps, codes = rows * steps;
    const double flops = 2 * static_cast<double>(codes) * static_cast<double>(atoms) * static_cast<double>(length + 1);
    for_each_pursuit(items, flops, threads, [&](index_t item, int used) {
      if (rows == 0) return;
      Workspace workspace;
      const Atoms<T> dictionary(W, item, used, workspace);
      const Pursuit<T> pursuit(x, item, dictionary, parameters, values.ptr<T>() + item * codes,
                               residual ? residual->ptr<T>() + item * rows * length : nullptr,
                               indices ? indices->ptr<std::int32_t>() + item * codes : nullptr);
      const double bytes = static_cast<double>(atoms) * static_cast<double>(atoms) * sizeof(T) * (threads / used);
      if (updates_products(rows, atoms, length, steps, bytes)) {
        pursuit.update(gram_of(dictionary, used, workspace), used);
      } else {
        pursuit.recompute(used);
      }
    });
  });
}

}  // namespace subspan
