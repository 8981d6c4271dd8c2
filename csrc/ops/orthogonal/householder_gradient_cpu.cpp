#include "core/dispatch.h"
#include "ops/orthogonal/householder_items.h"

namespace subspan {
namespace {

// A row tile of a left operand in memory, or a copy of it where a tile cannot be read in place.
template <class T>
struct LeftTile {
  const T* data;
  index_t entry, step;
};

template <class T>
[[gnu::always_inline]] inline LeftTile<T> left_tile(const MatrixView& from, index_t row, index_t first, index_t depth,
                                                    T* copy) {
  if (from.native<T>() && row + kTileRows <= from.rows) {
    return {from.at<T>(row, first), from.row_step, from.column_step};
  }
  for (index_t i = 0; i < kTileRows; ++i) {
    T* to = copy + i * kSumBlock;
    if (row + i >= from.rows) {
      std::fill_n(to, depth, T(0));
      continue;
    }
    const T* in = from.by_rows<T>().read(row + i, first, depth, to);
    if (in != to) std::copy_n(in, depth, to);
  }
  return {copy, kSumBlock, 1};
}

// d_V = -G P^T - X R^T + V C as one product [G X V] [-P -R C]^T, whose right operand is packed once. All of its blocks
// are those of the whole chain: what the walk through the blocks gives is P and R of the whole.
template <class T>
class VectorGradient {
 public:
  VectorGradient(const HouseholderArrays& in, const TensorView& upstream, const Reflectors<T>& reflectors, index_t item,
                 const HouseholderParameters& parameters, int threads, Workspace& workspace)
      : upstream_(upstream, item, in.X ? parameters.right : parameters.rows),
        next_upstream_(bytes_to_next(upstream, item)),
        next_vectors_(bytes_to_next(in.V, item)),
        reflectors_(reflectors),
        columns_(in.columns),
        count_(reflectors.count()),
        free_(in.tau != nullptr),
        lower_(parameters.transpose != parameters.right),
        identity_(in.X == nullptr),
        narrow_(reflectors.narrow() && !reflectors.lapack()),
        width_(panel_width<T>(count_)),
        section_(narrow_ ? round_up(columns_, kNarrow<T>) : columns_),
        right_{nullptr, 2 * section_ + (narrow_ ? kNarrow<T> : count_), width_},
        overlap_{workspace.take<T>(panel_elements<T>(round_up(count_, kTileRows), count_)), round_up(count_, kTileRows),
                 width_},
        scales_(workspace.take<T>(count_)),
        inverses_(workspace.take<T>(round_up(count_, width_))),
        sums_(workspace.take<T>(threads * panel_elements<T>(kRows, count_))),
        copies_(workspace.take<T>(threads * kRows * kSumBlock)) {
    right_.data = workspace.take<T>(panel_elements<T>(right_.depth, count_));
    if (narrow_) std::fill_n(right_.data, right_.depth * width_, T(0));  // ends of the sections are not set
    if (in.X) input_.emplace_back(*in.X, item, parameters.right);
  }

  // Of every reflector: -tau ||v||^2 and 1 / ||v||.
  void set_scales(const T* factors) {
    std::fill_n(inverses_, round_up(count_, width_), T(0));
    for (index_t j = 0; j < count_; ++j, factors += reflectors_.factor_step()) {
      scales_[j] = -factors[reflectors_.width()];
      inverses_[j] = factors[reflectors_.width() + 1];
    }
  }

  void run(const T* coefficients, const T* own_coefficients, const MatrixView& result, Team team) const {
    const Rows<T> of_input = Rows<T>(coefficients, own_type(), columns_, 1).scaled(scales_);
    const Rows<T> of_upstream = Rows<T>(own_coefficients, own_type(), columns_, 1).scaled(scales_);
    each_panel(team, [&](index_t first, index_t size) {
      pack_rows(of_input, first, size, 0, columns_, panel(0, first));
      pack_rows(of_upstream, first, size, 0, columns_, panel(section_, first));
    });
    team.barrier();
    multiply_coefficients(team);
    team.barrier();
    each_panel(team, [&](index_t first, index_t size) { set_symmetric(first, size); });
    team.barrier();
    const index_t block_rows = narrow_ ? kNarrowRows : kRows;
    const index_t blocks = (reflectors_.length() + block_rows - 1) / block_rows;
    for (index_t block = team.rank(); block < blocks; block += team.size()) {
      const index_t row = block * block_rows, rows = std::min(block_rows, reflectors_.length() - row);
      if (narrow_) {
        add_narrow(row, row + rows, result);
        continue;
      }
      const Panels<T> sums{sums_ + team.rank() * panel_elements<T>(kRows, count_), kRows, width_};
      T* copies = copies_ + team.rank() * kRows * kSumBlock;
      if (single_vector()) {
        add_single_vector(row, rows, result, sums.data, copies);
        continue;
      }
      add_products(upstream_, row, rows, 0, true, sums, copies);
      if (!identity_) add_products(input_[0], row, rows, section_, false, sums, copies);
      add_vectors(row, rows, sums, copies);
      finish(sums, row, rows, result);
    }
  }

 private:
  static constexpr index_t kRows = 48;  // of the left operands at a time: their block stays in the first-level cache
  static constexpr index_t kNarrowRows = 512;
  static_assert(kRows % kTileRows == 0 && kNarrowRows % kLanes<T> == 0, "whole tiles");
  static constexpr DType own_type() { return sizeof(T) == 4 ? DType::f32 : DType::f64; }

  Panels<T> panel(index_t row, index_t first) const {
    return {right_.panel(first / width_) + row * width_, right_.depth, width_};
  }

  template <class Body>
  void each_panel(Team team, Body&& body) const {
    for (index_t first = team.rank() * width_; first < count_; first += team.size() * width_) {
      body(first, std::min(width_, count_ - first));
    }
  }

  // Rows [first, end) of the result by columns.
  void add_narrow(index_t first, index_t end, const MatrixView& result) const {
    const MatrixView to = result, upstream = upstream_, input = identity_ ? upstream_ : input_[0],
                     vectors = reflectors_.given();
    const T *right = right_.data, *of_input = right + section_ * kNarrowStep<T>,
            *of_vectors = of_input + section_ * kNarrowStep<T>;
    const index_t next_upstream = next_upstream_, next_vectors = next_vectors_;
    const bool identity = identity_;
    Vec<T> inverses[kNarrow<T>];
    for (index_t j = 0; j < kNarrow<T>; ++j) inverses[j] = broadcast(inverses_[j]);
    for (index_t row = first; row < end; row += kLanes<T>) {
      Vec<T> sums[kNarrow<T>];
      clear_tile<T>(sums);
      ask_for_next_tile<T>(upstream, row, next_upstream);
      ask_for_next_tile<T>(vectors, row, next_vectors);
      add_narrow_products(upstream, row, right, sums);
      if (!identity) add_narrow_products(input, row, of_input, sums);
      add_narrow_products(vectors, row, of_vectors, sums);
#pragma GCC unroll 8
      for (index_t j = 0; j < kNarrow<T>; ++j) sums[j] *= inverses[j];
      write_tile<T>(sums, to, row, 0);
    }
    for (index_t i = first; identity && i < std::min(columns_, end); ++i) {
      for (index_t j = 0; j < count_; ++j) *to.at<T>(i, j) += of_input[i * kNarrowStep<T> + j] * inverses_[j];
    }
  }

  [[gnu::always_inline]] static void add_narrow_products(const MatrixView& left, index_t row, const T* right,
                                                         Vec<T> (&sums)[kNarrow<T>]) {
    for (index_t k = 0; k < left.columns; k += kSumBlock) {
      Vec<T> block[kNarrow<T>];
      clear_tile<T>(block);
      for (index_t c = k; c < std::min(left.columns, k + kSumBlock); c += kNarrow<T>) {
        Vec<T> columns[kNarrow<T>];
        read_tile<T>(left, row, c, columns);
        add_tile_product<T>(columns, right + c * kNarrowStep<T>, block);
      }
#pragma GCC unroll 8
      for (index_t j = 0; j < kNarrow<T>; ++j) sums[j] += block[j];
    }
  }

  // Whether a row of the result is one vector and a short sum, which then stays in a register. What decides is the
  // shape alone.
  bool single_vector() const {
    return count_ <= kLanes<T> && width_ == kLanes<T> && !reflectors_.lapack() && right_.depth <= kSumBlock;
  }

  void add_single_vector(index_t row, index_t rows, const MatrixView& result, T* sums, T* copies) const {
    const Vec<T> inverses = load(inverses_);
    const T* right = right_.data;
    const bool direct = result.column_step == 1;
    for (index_t first = 0; first < rows; first += kTileRows) {
      Vec<T> tile[kTileRows] = {};
      const index_t present = std::min<index_t>(kTileRows, rows - first);
      add_tile(left_tile(upstream_, row + first, 0, columns_, copies), right, columns_, tile);
      if (!identity_) {
        add_tile(left_tile(input_[0], row + first, 0, columns_, copies), right + section_ * width_, columns_, tile);
      }
      add_tile(left_tile(reflectors_.given(), row + first, 0, count_, copies), right + 2 * section_ * width_, count_,
               tile);
      for (index_t i = 0; i < present; ++i) {
        const index_t own = row + first + i;
        if (identity_ && own < columns_) tile[i] += load(right + (section_ + own) * width_);
        tile[i] *= inverses;
        if (direct) {
          store_entries(result.at<T>(own, 0), tile[i], count_);
        } else {
          store(sums + (first + i) * width_, tile[i]);
        }
      }
    }
    if (!direct) store_strip(sums, width_, result, row, rows, 0, count_);
  }

  static void add_tile(const LeftTile<T>& left, const T* right, index_t depth, Vec<T> (&tile)[kTileRows]) {
    Vec<T> sums[kTileRows][1];
    multiply_strided_tile<1>(left.data, left.entry, left.step, right, kLanes<T>, depth, sums);
    for (int i = 0; i < kTileRows; ++i) tile[i] += sums[i][0];
  }

  // The upper triangle of R P^T, of P R^T for Q^T.
  void multiply_coefficients(Team team) const {
    const index_t left_row = lower_ ? 0 : section_, right_row = lower_ ? section_ : 0;
    for (index_t k = 0; k == 0 || k < columns_; k += kSumBlock) {
      const Panels<T> left{right_.data + (left_row + k) * width_, right_.depth, width_};
      const Panels<T> right{right_.data + (right_row + k) * width_, right_.depth, width_};
      multiply(left, count_, right, count_, std::min(kSumBlock, columns_ - k), Part::kUpper, team,
               StorePanels<T>{overlap_, k > 0, T(1)});
    }
  }

  // Rows of C over ||v|| of the row, for one panel of columns.
  void set_symmetric(index_t first, index_t size) const {
    const Panels<T> to = panel(2 * section_, first);
    for (index_t i = 0; i < count_; ++i) {
      T* row = to.data + i * width_;
      const T inverse = inverses_[i];
      for (index_t j = first; j < first + size; ++j) {
        const T entry = i == j && free_ ? T(0) : i <= j ? *overlap_.at(i, j) : *overlap_.at(j, i);
        row[j - first] = entry * inverse;
      }
      std::fill(row + size, row + width_, T(0));
    }
  }

  void add_vectors(index_t row, index_t rows, const Panels<T>& sums, T* copies) const {
    if (!reflectors_.lapack()) return add_products(reflectors_.given(), row, rows, 2 * section_, false, sums, copies);
    for (index_t block = 0; block < reflectors_.blocks(); ++block) {
      const index_t right_row = 2 * section_ + block * reflectors_.width();
      add_products(reflectors_.vectors(block), row, rows, right_row, false, sums, copies);
    }
  }

  void add_products(const MatrixView& left, index_t row, index_t rows, index_t right_row, bool fresh,
                    const Panels<T>& sums, T* copies) const {
    for (index_t k = 0; (fresh && k == 0) || k < left.columns; k += kSumBlock) {
      const index_t depth = std::min(kSumBlock, left.columns - k);
      const index_t tiles = (rows + kTileRows - 1) / kTileRows;
      LeftTile<T> tile[kRows / kTileRows];
      for (index_t t = 0; t < tiles; ++t) {
        tile[t] = left_tile(left, row + t * kTileRows, k, depth, copies + t * kTileRows * kSumBlock);
      }
      const StorePanels<T> store_sums{sums, !(fresh && k == 0), T(1)};
      for (index_t first = 0; first < count_; first += width_) {
        const T* right = panel(right_row + k, first).data;
        for (index_t t = 0; t < tiles; ++t) {
          with_vectors<T>((std::min(width_, count_ - first) + kLanes<T> - 1) / kLanes<T>, [&](auto v) {
            Vec<T> products[kTileRows][v.value];
            multiply_strided_tile<v.value>(tile[t].data, tile[t].entry, tile[t].step, right, width_, depth, products);
            store_sums(t * kTileRows, first, products);
          });
        }
      }
    }
  }

  // X R^T for X the identity are rows of -R; then every column is divided by the length of its reflector. The ones and
  // zeros of LAPACK's vectors are constants.
  void finish(const Panels<T>& sums, index_t row, index_t rows, const MatrixView& result) const {
    for (index_t first = 0; first < count_; first += width_) {
      const index_t size = std::min(width_, count_ - first);
      T* own = sums.panel(first / width_);
      const T* added = panel(section_, first).data + row * width_;
      const index_t with_one = identity_ ? std::clamp<index_t>(columns_ - row, 0, rows) : 0;
      for (index_t i = 0; i < with_one * width_; i += kLanes<T>) store(own + i, load(own + i) + load(added + i));
      for (index_t j = 0; j < width_; j += kLanes<T>) {
        const Vec<T> inverse = load(inverses_ + first + j);
        for (index_t i = 0; i < rows; ++i) store(own + i * width_ + j, load(own + i * width_ + j) * inverse);
      }
      if (reflectors_.lapack()) {
        for (index_t i = 0; i < rows; ++i) {
          const index_t below = std::clamp<index_t>(row + i - first, 0, size);
          std::fill_n(own + i * width_ + below, size - below, T(0));
        }
      }
      store_strip(own, width_, result, row, rows, first, size);
    }
  }

  MatrixView upstream_;
  index_t next_upstream_, next_vectors_;
  std::vector<MatrixView> input_;  // none: the identity
  const Reflectors<T>& reflectors_;
  index_t columns_, count_;
  bool free_, lower_, identity_, narrow_;
  index_t width_, section_;  // section: rows of `right` for P, and for R
  Panels<T> right_, overlap_;
  T *scales_, *inverses_, *sums_, *copies_;
};

// -<a_j, w_j> ||v_j||^2 of coefficients that were divided by ||v_j||.
template <class T>
void set_tau_gradient(const Reflectors<T>& reflectors, const T* factors, const T* a, const T* w, index_t columns,
                      T* result) {
  for (index_t j = 0; j < reflectors.count(); ++j) {
    double sum = 0;
    for (index_t c = 0; c < columns; ++c) {
      sum += static_cast<double>(a[j * columns + c]) * static_cast<double>(w[j * columns + c]);
    }
    const double inverse = factors[j * reflectors.factor_step() + reflectors.width() + 1];
    result[j] = static_cast<T>(-sum / (inverse * inverse));
  }
}

template <class T>
void gradient_item(const HouseholderArrays& in, const T* coefficients, const T* factors, const TensorView& upstream,
                   const HouseholderGradients& gradients, index_t item, const HouseholderParameters& parameters,
                   int threads) {
  Workspace workspace;
  const bool swapped = in.X ? parameters.right : parameters.rows;
  const bool transposed = parameters.transpose != parameters.right;
  const MatrixView G(upstream, item, swapped);
  const MatrixView d_X = gradients.X ? MatrixView(*gradients.X, item, swapped) : G;
  const Reflectors<T> reflectors(MatrixView(in.V, item, parameters.rows), parameters.lapack, workspace);
  const std::vector<Strip<T>> strips = make_strips(reflectors, in.columns, threads, workspace);
  T* own = workspace.take<T>(reflectors.count() * in.columns);
  std::vector<VectorGradient<T>> of_vectors;
  if (gradients.V) of_vectors.emplace_back(in, upstream, reflectors, item, parameters, threads, workspace);
  if (gradients.V) of_vectors[0].set_scales(factors);
  const bool columns_alone = by_columns(in, reflectors);
  std::optional<NarrowProduct<T, T>> narrow;
  if (columns_alone) narrow.emplace(reflectors.length(), threads, workspace);
  parallel_team(threads, [&](Team team) {
    if (columns_alone) {
      narrow->add(reflectors.given(), &G, team);
    } else {
      reflectors.pack(team);
    }
    team.barrier();
    Strip<T> strip = strips[static_cast<std::size_t>(team.rank())];
    if (columns_alone && team.rank() == 0) {
      narrow->finish(strip.set_products(in.columns), strip.width());
      strip.walk(factors, !transposed, own, in.columns, nullptr, 0, coefficients);
    }
    for (index_t first = team.rank() * strip.width(); first < in.columns && !columns_alone;
         first += team.size() * strip.width()) {
      const index_t count = std::min(strip.width(), in.columns - first);
      strip.load(G, first, count, strip.reads_only(gradients.X ? &d_X : nullptr));
      strip.walk(factors, !transposed, own + first, in.columns, gradients.X ? &d_X : nullptr, first,
                 coefficients + first);
    }
    team.barrier();
    if (gradients.tau && team.rank() == 0) {
      set_tau_gradient(reflectors, factors, own, coefficients, in.columns,
                       gradients.tau->template ptr<T>() + item * reflectors.count());
    }
    if (gradients.V) of_vectors[0].run(coefficients, own, MatrixView(*gradients.V, item, parameters.rows), team);
  });
}

}  // namespace

void householder_gradient_cpu(const HouseholderArrays& in, const TensorView& coefficients, const TensorView& factors,
                              const TensorView& upstream, const HouseholderGradients& gradients,
                              const HouseholderParameters& parameters, int threads) {
  dispatch_float(coefficients.dtype, "householder_apply", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t count = in.V.size(parameters.rows ? -2 : -1), length = in.V.size(parameters.rows ? -1 : -2);
    const double flops =
        static_cast<double>(length * count) * static_cast<double>(8 * in.columns + 2 * count + reflector_block(count));
    each_item(batch_count(in.V, 2), flops, threads, [&](index_t item, int team_size) {
      gradient_item<T>(in, coefficients.ptr<T>() + item * count * in.columns,
                       factors.ptr<T>() + item * count * (reflector_block(count) + 2), upstream, gradients, item,
                       parameters, team_size);
    });
  });
}

}  // namespace subspan
