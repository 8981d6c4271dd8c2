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

// Whether products with the atoms are updated by rows of W W^T. In multiply-adds of `recompute`: forming half of that
// matrix takes atoms^2 d / 2, half as long again for one because it is written twice, and its fresh memory; each step
// after the first then reads atoms numbers for a row, in place of atoms d multiply-adds. Measured where memory is at
// hand; where the system has to find it, a page can take many times as long, so twice as much has to be saved as spent.
bool updates_products(index_t rows, index_t atoms, index_t length, index_t steps, double bytes) {
  constexpr double kRead = 56, kFresh = 80;
  const auto d = static_cast<double>(length);
  const double saved = static_cast<double>(rows) * static_cast<double>(steps - 1) * (d - kRead);
  return bytes <= kGramBytes && saved > 2 * 0.75 * static_cast<double>(atoms) * (d + kFresh);
}

// Between rows of W W^T: a line of the cache more than they need, because columns of it are written, and lines whose
// distance is a power of two are kept in the same few places of a cache.
template <class T>
constexpr index_t gram_step(index_t atoms) {
  constexpr index_t line = 64 / static_cast<index_t>(sizeof(T));
  return round_up(atoms, line) + line;
}

// The finish that stores tiles of the upper triangle of W W^T, and mirrors them.
template <class T>
struct StoreBoth {
  T* gram;
  index_t size, step;
  index_t first_row;  // of the tiles'

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t tile_row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
    const index_t row = first_row + tile_row, rows = std::min<index_t>(kTileRows, size - row);
#pragma GCC unroll 3
    for (index_t v = 0; v < Vectors; ++v) {
      const index_t first = column + v * kLanes<T>, count = std::min<index_t>(kLanes<T>, size - first);
      Vec<T> part[kTileRows];
#pragma GCC unroll 8
      for (index_t i = 0; i < kTileRows; ++i) part[i] = sums[i][v];
      if (rows == kTileRows && count == kLanes<T>) {
#pragma GCC unroll 8
        for (index_t i = 0; i < kTileRows; ++i) store(gram + (row + i) * step + first, part[i]);
        mirror(part, gram + first * step + row);
      } else {
        for (index_t i = 0; i < rows; ++i) {
          for (index_t lane = 0; lane < count; ++lane) {
            gram[(row + i) * step + first + lane] = gram[(first + lane) * step + row + i] = part[i][lane];
          }
        }
      }
    }
  }

  // A whole vector of columns of the tile, transposed.
  [[gnu::always_inline]] void mirror(Vec<T> (&part)[kTileRows], T* to) const {
    constexpr index_t lanes = kLanes<T>;
    if constexpr (kTileRows == lanes) {
      transpose_square<T>(part);
#pragma GCC unroll 8
      for (index_t lane = 0; lane < lanes; ++lane) store(to + lane * step, part[lane]);
    } else if constexpr (2 * kTileRows == lanes) {
      transpose_half_squares<T>(part);
#pragma GCC unroll 8
      for (index_t lane = 0; lane < lanes / 2; ++lane) {
        store_halves(to + lane * step, to + (lane + lanes / 2) * step, part[lane]);
      }
    } else {
      for (index_t lane = 0; lane < lanes; ++lane) {
        for (index_t i = 0; i < kTileRows; ++i) to[lane * step + i] = part[i][lane];
      }
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
        indices_(indices) {}

  // The products of all residuals with all atoms at every step.
  void recompute(int threads) const {
    const index_t share = (rows_ + threads - 1) / threads;
    const index_t block = std::clamp<index_t>(round_up(share, kTileRows), kTileRows, kMost);
    parallel_for((rows_ + block - 1) / block, threads, [&](index_t task) {
      const index_t first = task * block, count = std::min(block, rows_ - first);
      Workspace workspace;
      T* residuals = workspace.take<T>(count * length_);
      for (index_t i = 0; i < count; ++i) read_row(x_, first + i, length_, residuals + i * length_);
      const Panels<T> left{workspace.take<T>(panel_elements<T>(length_, kMost)), length_, kPanelWidth<T>};
      for (index_t step = 0; step < parameters_.steps; ++step) {
        index_t chosen[kMost];
        choose_all(residuals, count, left, chosen);
        for (index_t i = 0; i < count; ++i) take(first + i, step, chosen[i], residuals + i * length_);
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
  static constexpr index_t kMost = 2 * kPanelWidth<T>;  // rows whose products are formed together

  // The atoms that have the largest products with the residuals.
  void choose_all(const T* residuals, index_t count, const Panels<T>& left, index_t* chosen) const {
    Largest<T> largest[kMost];
    const Rows<T> rows(residuals, sizeof(T) == 4 ? DType::f32 : DType::f64, length_, 1);
    pack_rows(rows, 0, count, 0, length_, left);
    atoms_.multiply_all(left, count, KeepLargest<T>(largest, atoms_.count(), parameters_.by_magnitude));
    for (index_t i = 0; i < count; ++i) {
      chosen[i] = largest[i].nan() ? first_nan(residuals + i * length_) : largest[i].column();
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
    T most = scan<false>(products, nullptr, T(0));
    for (index_t step = 0;; ++step) {
      // The first products are those that `recompute` forms.
      const double error = step == 0 ? 0 : longest * (gamma * (lengths + norm(residual)) + rounded);
      const index_t atom = choose_among(products, most - static_cast<T>(2.2 * error), residual);
      const T value = take(row, step, atom, residual);
      if (step + 1 == parameters_.steps) break;
      lengths += std::abs(static_cast<double>(value)) * longest;
      rounded += 4 * unit * norm(residual);
      most = scan<true>(products, gram + atom * gram_step<T>(atoms_.count()), value);
    }
    finish(row, residual);
  }

  double norm(const T* vector) const { return std::sqrt(static_cast<double>(dot(vector, vector, length_))); }

  Vec<T> size(Vec<T> products) const { return parameters_.by_magnitude ? magnitude<T>(products) : products; }

  // The largest size of a product, NaN if one is not finite; with Update, after subtracting value * gram.
  template <bool Update>
  T scan(T* products, const T* gram, T value) const {
    constexpr index_t lanes = kLanes<T>, kSums = 4;
    const index_t count = atoms_.count();
    Vec<T> most[kSums], zero[kSums] = {};
    for (Vec<T>& part : most) part = broadcast(-std::numeric_limits<T>::infinity());
    const auto see = [&](Vec<T> own, index_t s) {
      zero[s] += T(0) * own;
      own = size(own);
      most[s] = own > most[s] ? own : most[s];
    };
    index_t m = 0;
    for (; m + kSums * lanes <= count; m += kSums * lanes) {
#pragma GCC unroll 4
      for (index_t s = 0; s < kSums; ++s) {
        T* at = products + m + s * lanes;
        Vec<T> own = load(at);
        if (Update) store(at, own -= value * load(gram + m + s * lanes));
        see(own, s);
      }
    }
    T last = -std::numeric_limits<T>::infinity();
    for (; m < count; ++m) {
      if (Update) products[m] -= value * gram[m];
      const T own = parameters_.by_magnitude ? std::abs(products[m]) : products[m];
      last = own > last ? own : last;
      zero[0][0] += T(0) * products[m];
    }
    for (index_t lane = 0; lane < lanes; ++lane) {
      for (index_t s = 0; s < kSums; ++s) {
        last = most[s][lane] > last ? most[s][lane] : last;
        zero[0][0] += zero[s][lane];
      }
    }
    return last + zero[0][0];
  }

  // The choice of `recompute`: the atom whose product reaches the bound, or the largest of those whose products do.
  index_t choose_among(const T* products, T bound, const T* residual) const {
    constexpr index_t kFew = kLanes<T>;
    index_t found[kFew], count = 0;
    const auto see = [&](index_t m) {
      const T own = parameters_.by_magnitude ? std::abs(products[m]) : products[m];
      if (!(own >= bound)) return;
      if (count < kFew) found[count] = m;
      ++count;
    };
    index_t m = 0;
    for (; m + kLanes<T> <= atoms_.count() && count <= kFew; m += kLanes<T>) {
      if (!any<T>(size(load(products + m)) >= bound)) continue;
      for (index_t lane = 0; lane < kLanes<T>; ++lane) see(m + lane);
    }
    for (; m < atoms_.count() && count <= kFew; ++m) see(m);
    if (count == 1) return found[0];
    Workspace workspace;
    const Panels<T> left{workspace.take<T>(panel_elements<T>(length_, 1)), length_, panel_width<T>(1)};
    if (count == 0 || count > kFew) {  // none: NaN
      index_t chosen;
      choose_all(residual, 1, left, &chosen);
      return chosen;
    }
    const Rows<T> own(residual, sizeof(T) == 4 ? DType::f32 : DType::f64, length_, 1);
    pack_rows(own, 0, 1, 0, length_, left);
    const Panels<T> right{workspace.take<T>(panel_elements<T>(length_, count)), length_, panel_width<T>(count)};
    pack_rows(atoms_.rows().gathered(found), 0, count, 0, length_, right);
    Vec<T> sums[kTileRows][1];
    multiply_tile<1>(left.column(0), left.width, right.column(0), right.width, length_, sums);
    Largest<T> largest[kTileRows];
    KeepLargest<T>(largest, count, parameters_.by_magnitude)(0, 0, sums);
    return found[largest[0].nan() ? 0 : largest[0].column()];
  }

  Rows<T> x_;
  index_t rows_, length_;
  const Atoms<T>& atoms_;
  const PursuitParameters& parameters_;
  T* values_;
  T* residual_;
  std::int32_t* indices_;
};

template <class T>
const T* gram_of(const Atoms<T>& atoms, int threads, Workspace& workspace) {
  const index_t size = atoms.count();
  const index_t step = gram_step<T>(size);
  T* gram = workspace.take<T>(size * step);
  wish_for_huge_pages(gram, static_cast<std::size_t>(size * step) * sizeof(T));
  const index_t panels = panel_count<T>(size), width = atoms.panels().width;
  // Panels of both sides that stay in the second-level cache together.
  const auto panel_bytes = static_cast<index_t>(sizeof(T)) * width * std::max<index_t>(atoms.length(), 1);
  const index_t group = std::clamp<index_t>((index_t{512} << 10) / panel_bytes, 1, 4);
  const index_t groups = (panels + group - 1) / group;
  parallel_for(
      groups, threads,
      [&](index_t task) {
        const index_t first = (groups - 1 - task) * group, end = std::min(panels, first + group);  // the longest first
        for (index_t left = 0; left < end; ++left) {
          const Panels<T> rows{atoms.panels().panel(left), atoms.length(), width};
          const StoreBoth<T> store{gram, size, step, left * width};
          for (index_t p = std::max(first, left); p < end; ++p) {
            atoms.multiply_panel(rows, std::min(width, size - left * width), p, store);
          }
        }
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
