// All products A_i^T B_j between two sets of bases, some A_i at a time, in the type of the data.
#pragma once
#include "core/batch.h"
#include "core/pack.h"
#include "core/product.h"

namespace subspan {

// Bases (N, n, p) of one batch item.
struct BasisSet {
  TensorView view;  // three dimensions

  index_t count() const { return view.size(-3); }
  index_t rows() const { return view.size(-2); }
  index_t width() const { return view.size(-1); }
  static BasisSet of(const TensorView& sets, index_t item) {
    BasisSet set;
    set.view.data = const_cast<void*>(batch_item(sets, 3, item));
    set.view.ndim = 3;
    set.view.dtype = sets.dtype;
    set.view.device = sets.device;
    for (int i = 0; i < 3; ++i) {
      set.view.shape[i] = sets.shape[sets.ndim - 3 + i];
      set.view.stride[i] = sets.stride[sets.ndim - 3 + i];
    }
    return set;
  }
  bool is(const BasisSet& other) const {
    bool same = view.data == other.view.data && view.dtype == other.view.dtype;
    for (int i = 0; i < 3; ++i)
      same = same && view.shape[i] == other.view.shape[i] && view.stride[i] == other.view.stride[i];
    return same;
  }
};

// How many columns of each basis are not zero, as independent_columns.
template <class T>
void count_independent(const BasisSet& set, index_t* counts) {
  const index_t rows = set.rows(), width = set.width();
  Workspace workspace;
  T* scratch = workspace.take<T>(width);
  bool* seen = workspace.take<bool>(width);
  for (index_t i = 0; i < set.count(); ++i) {
    const Rows<T> basis(batch_item(set.view, 2, i), set.view.dtype, set.view.step(-2), set.view.step(-1));
    std::fill_n(seen, width, false);
    counts[i] = 0;
    for (index_t k = 0; k < rows && counts[i] < width; ++k) {  // one row, as a rule
      const T* in = basis.read(k, 0, width, scratch);
      for (index_t a = 0; a < width; ++a) {
        if (seen[a] || in[a] == 0) continue;
        seen[a] = true;
        ++counts[i];
      }
    }
  }
}

// Columns of bases first ... first + count - 1, side by side, into columns `column` ... of panels.
template <class T>
void pack_bases(const BasisSet& set, index_t first, index_t count, index_t column, const Panels<T>& to) {
  const index_t rows = set.rows(), width = set.width();
  Workspace workspace;
  T* scratch = workspace.take<T>(width);
  for (index_t i = 0; i < count; ++i) {
    const Rows<T> basis(batch_item(set.view, 2, first + i), set.view.dtype, set.view.step(-2), set.view.step(-1));
    for (index_t k = 0; k < rows; ++k) {
      const T* in = basis.read(k, 0, width, scratch);
      for (index_t a = 0; a < width;) {  // runs within one panel
        const index_t c = column + i * width + a, run = std::min(width - a, to.width - c % to.width);
        std::copy(in + a, in + a + run, to.at(k, c));
        a += run;
      }
    }
  }
}

template <class T>
class PairwiseProducts {
 public:
  // A chunk of A's bases: enough columns to pay for a pass over B, few enough for the second cache.
  static constexpr index_t kChunkColumns = 2 * kPanelWidth<T>;

  PairwiseProducts(const BasisSet& A, const BasisSet& B, T* packed)
      : A_(A), B_(B), right_{packed, A.rows(), kPanelWidth<T>} {}

  static index_t packed_elements(const BasisSet& B) {
    return round_up(std::max<index_t>(B.count() * B.width(), 1), kPanelWidth<T>) * B.rows();
  }
  static index_t chunk(const BasisSet& A) {
    return std::max<index_t>(1, kChunkColumns / std::max<index_t>(A.width(), 1));
  }
  index_t columns() const { return B_.count() * B_.width(); }

  // B's columns; the last panel is completed with zeros.
  void pack_share(Team team) const {
    const index_t share = (B_.count() + team.size() - 1) / team.size(), first = share * team.rank();
    if (team.rank() == 0) {
      const index_t last = columns() / right_.width * right_.width;
      if (last < columns()) std::fill(right_.at(0, last), right_.at(0, last) + right_.depth * right_.width, T(0));
    }
    team.barrier();
    if (first < B_.count()) pack_bases(B_, first, std::min(share, B_.count() - first), first * B_.width(), right_);
  }

  // products (count * p rows, columns() columns): A_i^T B_j for bases first ... first + count - 1 of A, from column
  // `from` on, which is a multiple of a panel.
  void multiply_chunk(index_t first, index_t count, index_t from, T* products) const {
    constexpr index_t depth_block = 256;  // a longer sum in one chain loses digits
    Workspace workspace;
    const index_t rows = count * A_.width(), padded = round_up(rows, kPanelWidth<T>);
    const Panels<T> left{workspace.take<T>(padded * right_.depth), right_.depth, kPanelWidth<T>};
    std::fill(left.data, left.data + padded * right_.depth, T(0));
    pack_bases(A_, first, count, 0, left);
    if (right_.depth == 0) std::fill(products, products + rows * columns(), T(0));
    for (index_t k = 0; k < right_.depth; k += depth_block) {
      const index_t depth = std::min(depth_block, right_.depth - k);
      for (index_t column = from; column < columns(); column += right_.width) {
        const index_t width = std::min(right_.width, columns() - column);
        const Panels<T> right{right_.panel(column / right_.width) + k * right_.width, right_.depth, right_.width};
        const Panels<T> part{left.data + k * left.width, left.depth, left.width};
        const StoreRows<T> finish{products + column, columns(), rows, width, k > 0};
        multiply(part, rows, right, width, depth, Part::kAll, Team(), finish);
      }
    }
  }

 private:
  BasisSet A_, B_;
  Panels<T> right_;
};

// The product of pair (i, j) as a matrix (p, q) of a batch that runs over j.
template <class T>
TensorView products_of(T* products, index_t i, const BasisSet& A, const BasisSet& B) {
  TensorView view;
  const index_t columns = B.count() * B.width();
  view.data = products + i * A.width() * columns;
  view.ndim = 3;
  view.shape[0] = B.count(), view.shape[1] = A.width(), view.shape[2] = B.width();
  view.stride[0] = B.width(), view.stride[1] = columns, view.stride[2] = 1;
  view.dtype = sizeof(T) == 4 ? DType::f32 : DType::f64;
  view.device = Device::cpu;
  return view;
}

}  // namespace subspan
