#include "core/dispatch.h"
#include "core/product.h"
#include "ops/dense/affine_product.h"

namespace subspan {
namespace {

constexpr index_t kDepthBlock = 256;  // of the packed right operand, which all members read
constexpr index_t kStripPanels = 2;

// One operand of one batch item: rows of length k, or, where columns are contiguous, the transpose of such a matrix.
template <class T>
class Operand {
 public:
  Operand(const TensorView& view, index_t item)
      : transposed_(view.step(-1) != 1 && view.step(-2) == 1),
        rows_(batch_item(view, 2, item), view.dtype, transposed_ ? view.step(-1) : view.step(-2),
              transposed_ ? 1 : view.step(-1)) {}

  // to[k][i] = entry k of row `first` + i.
  void pack(index_t first, index_t count, index_t k, index_t depth, const Panels<T>& to) const {
    if (transposed_) {
      pack_columns(rows_, k, depth, first, count, to);
    } else {
      pack_rows(rows_, first, count, k, depth, to);
    }
  }

 private:
  bool transposed_;
  Rows<T> rows_;
};

// Blocks of the sum are added up in the result; after the last one the tile is scaled, and the rest added.
template <class T>
struct Finish {
  T* result = nullptr;
  index_t columns = 0;
  const T* E = nullptr;
  index_t row_step = 0, column_step = 0;  // of E
  T scale = 1, shift = 0;
  bool relu = false;
  index_t row0 = 0, rows = 0;  // of the strip
  bool add = false, complete = false;

  template <int Vectors>
  [[gnu::always_inline]] void operator()(index_t row, index_t column, Vec<T> (&sums)[kTileRows][Vectors]) const {
    const StoreRows<T> store_rows{result + row0 * columns, columns, rows, columns, add};
    store_rows(row, column, sums);
    if (complete) complete_tile(row0 + row, row0 + std::min<index_t>(row + kTileRows, rows), column, Vectors);
  }

  // Apart from the product, whose registers are all in use.
  [[gnu::noinline]] void complete_tile(index_t begin, index_t end, index_t column, int vectors) const {
    const index_t stop = std::min<index_t>(columns, column + vectors * kLanes<T>);
    for (index_t r = begin; r < end; ++r) {
      T* target = result + r * columns;
      const T* added = E ? E + r * row_step : nullptr;
      index_t c = column;
      if (!added || column_step == 1) {
        for (; c + kLanes<T> <= stop; c += kLanes<T>) {
          Vec<T> value = load(target + c) * scale + shift;
          if (added) value += load(added + c);
          if (relu) value = value <= T(0) ? Vec<T>{} : value;  // NaN stays NaN
          store(target + c, value);
        }
      }
      for (; c < stop; ++c) {
        const T value = target[c] * scale + shift + (added ? added[c * column_step] : T(0));
        target[c] = relu && value <= T(0) ? T(0) : value;
      }
    }
  }
};

template <class T>
void multiply_item(const TensorView& A, const TensorView& B, const TensorView* E, index_t item, T* result,
                   const AffineParameters& parameters, int threads) {
  constexpr index_t width = kPanelWidth<T>, strip_rows = kStripPanels * width;
  const index_t rows = A.size(-2), columns = B.size(-2), depth = A.size(-1);
  const Operand<T> left(A, item), right(B, item);
  const index_t block = std::min(kDepthBlock, std::max<index_t>(depth, 1));
  Workspace workspace;
  const Panels<T> packed{workspace.take<T>(panel_elements<T>(block, columns)), block, panel_width<T>(columns)};
  T* strips = workspace.take<T>(strip_rows * block * threads);
  Finish<T> finish;
  finish.result = result;
  finish.columns = columns;
  finish.scale = static_cast<T>(parameters.scale);
  finish.shift = static_cast<T>(parameters.shift);
  finish.relu = parameters.relu;
  if (E) {
    finish.E = static_cast<const T*>(batch_item(*E, 2, item));
    finish.row_step = E->step(-2);
    finish.column_step = E->step(-1);
  }
  const bool unfinished = E || finish.relu || finish.scale != 1 || finish.shift != 0;
  parallel_team(threads, [&](Team team) {
    // Whole tiles of rows to each member, neighbouring ones.
    const index_t tiles = (rows + kTileRows - 1) / kTileRows;
    const index_t begin = tiles * team.rank() / team.size() * kTileRows;
    const index_t end = std::min(rows, tiles * (team.rank() + 1) / team.size() * kTileRows);
    const Panels<T> strip{strips + team.rank() * strip_rows * block, block, width};
    // An empty sum is one block of depth zero.
    for (index_t k = 0; k == 0 || k < depth; k += block) {
      const index_t part = std::min(block, depth - k);
      for (index_t c = team.rank() * packed.width; c < columns; c += team.size() * packed.width) {
        const Panels<T> panel{packed.panel(c / packed.width), block, packed.width};
        right.pack(c, std::min(packed.width, columns - c), k, part, panel);
      }
      team.barrier();
      for (index_t row = begin; row < end; row += strip_rows) {
        Finish<T> own = finish;
        own.row0 = row, own.rows = std::min(strip_rows, end - row);
        own.add = k > 0;
        own.complete = unfinished && k + part >= depth;
        left.pack(row, own.rows, k, part, strip);
        multiply(strip, own.rows, packed, columns, part, Part::kAll, Team(), own);
      }
      team.barrier();
    }
  });
}

}  // namespace

void affine_product_cpu(const TensorView& A, const TensorView& B, const TensorView* E, const TensorView& result,
                        const AffineParameters& parameters, int threads) {
  dispatch_float(B.dtype, "affine_product", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(A, 2), elements = A.size(-2) * B.size(-2);
    const double flops = 2 * static_cast<double>(elements) * static_cast<double>(A.size(-1) + 1);
    if (items >= threads) {
      parallel_for(items, useful_threads(static_cast<double>(items) * flops, threads), [&](index_t item) {
        multiply_item<T>(A, B, E, item, result.ptr<T>() + item * elements, parameters, 1);
      });
    } else {
      for (index_t item = 0; item < items; ++item) {
        multiply_item<T>(A, B, E, item, result.ptr<T>() + item * elements, parameters,
                         useful_threads(flops / 4, threads));
      }
    }
  });
}

}  // namespace subspan
