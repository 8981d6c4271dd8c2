// A chain of Householder reflectors in blocks: their vectors as the micro-kernel reads them, the triangular factor of
// every block, and the walk of a strip of columns through the chain.
#pragma once
#include "core/parallel.h"
#include "ops/orthogonal/householder.h"
#include "ops/orthogonal/narrow_tiles.h"

namespace subspan {

constexpr index_t kSumBlock = 256;  // rows that are added up in registers, before their sum is added to the others'

template <class T>
class Reflectors {
 public:
  Reflectors(const MatrixView& V, bool lapack, Workspace& workspace)
      : V_(V),
        lapack_(lapack),
        width_(std::max<index_t>(reflector_block(V.columns), kTileRows)),
        depth_(round_up(V.rows, kTileRows)),
        in_place_(!lapack && V.native<T>() && V.columns == width_ && V.rows == depth_),
        packed_(in_place_ ? nullptr : workspace.take<T>(depth_ * width_ * blocks())) {}

  index_t length() const { return V_.rows; }
  index_t depth() const { return depth_; }  // length in whole tiles
  index_t count() const { return V_.columns; }
  index_t width() const { return width_; }
  index_t factor_step() const { return width_ + 2; }
  index_t blocks() const { return (V_.columns + width_ - 1) / width_; }
  index_t block_size(index_t block) const { return std::min(width_, V_.columns - block * width_); }
  bool lapack() const { return lapack_; }
  // Whether a row of V is at most half a vector.
  bool narrow() const { return count() > 0 && count() <= kNarrow<T>; }
  // The vectors of all blocks as they were given; those of one, of type T and with the ones and zeros of LAPACK's.
  const MatrixView& given() const { return V_; }
  MatrixView vectors(index_t block) const {
    char* data = reinterpret_cast<char*>(const_cast<T*>(at(0, block * width_)));
    return {data, sizeof(T) == 4 ? DType::f32 : DType::f64, length(), block_size(block), row_step(), reflector_step()};
  }

  // Entry `row` of reflector `reflector`, and the steps from there, within a block.
  const T* at(index_t row, index_t reflector) const {
    if (in_place_) return V_.at<T>(row, reflector);
    return packed_ + reflector / width_ * depth_ * width_ + row * width_ + reflector % width_;
  }
  index_t row_step() const { return in_place_ ? V_.row_step : width_; }
  index_t reflector_step() const { return in_place_ ? V_.column_step : 1; }

  // To be followed by a barrier, but for what a member does with its own blocks.
  void pack(Team team) const {
    if (in_place_) return;
    for (index_t block = team.rank(); block < blocks(); block += team.size()) {
      T* to = packed_ + block * depth_ * width_;
      load_strip(V_, 0, length(), block * width_, block_size(block), to, width_, true);
      if (lapack_) set_triangle(block, to);
      std::fill_n(to + length() * width_, (depth_ - length()) * width_, T(0));
    }
  }

 private:
  void set_triangle(index_t block, T* to) const {
    const index_t first = block * width_;
    for (index_t i = 0; i < std::min(length(), first + block_size(block)); ++i) {
      for (index_t j = std::max(first, i); j < first + block_size(block); ++j) to[i * width_ + j - first] = i == j;
    }
  }

  MatrixView V_;
  bool lapack_;
  index_t width_, depth_;
  bool in_place_;
  T* packed_;
};

// The triangular factors of one block, in double: O(k) rounding errors of the type T would show in Q^T Q.
class BlockFactor {
 public:
  explicit BlockFactor(Workspace& workspace)
      : chunk_{workspace.take<double>(panel_elements<double>(kSumBlock, kReflectorBlock)), kSumBlock,
               kPanelWidth<double>},
        gram_(workspace.take<double>(panel_elements<double>(kReflectorBlock, kReflectorBlock))),
        lengths_(workspace.take<double>(kReflectorBlock)),
        scales_(workspace.take<double>(kReflectorBlock)),
        right_(workspace.take<double>(kReflectorBlock * kReflectorBlock)),
        left_(workspace.take<double>(kReflectorBlock * kReflectorBlock)) {}

  // The Gram matrix, of which a member of the team computes its tiles. To be followed by a barrier and `finish`.
  template <class T>
  void multiply_gram(const Reflectors<T>& reflectors, index_t block, const Panels<double>& gram, Team team) {
    const index_t count = reflectors.block_size(block);
    chunk_.width = gram.width;
    const MatrixView V = reflectors.vectors(block);
    for (index_t row = 0; row == 0 || row < V.rows; row += kSumBlock) {
      const index_t rows = std::min(kSumBlock, V.rows - row);
      if (V.transposed()) {
        pack_rows(V.by_columns<double>(), 0, count, row, rows, chunk_);
      } else if (!widen(V.at<T>(row, 0), V.row_step, V.column_step, rows, count)) {
        pack_columns(V.by_rows<double>(), row, rows, 0, count, chunk_);
      }
      multiply(chunk_, count, chunk_, count, rows, Part::kUpper, team, StorePanels<double>{gram, row > 0, 1.0});
    }
  }
  // Where one member has the block to itself; with the width that belongs to the block.
  Panels<double> own_gram(index_t count) const { return {gram_, kReflectorBlock, panel_width<double>(count)}; }

  // `tau`: null for 2 / ||v||^2.
  void finish(const Panels<double>& gram, index_t first, index_t count, const Rows<double>* tau) {
    for (index_t j = 0; j < count; ++j) {
      const double square = *gram.at(j, j);
      lengths_[j] = square == 0 ? 1 : std::sqrt(square);
      double given;
      scales_[j] = tau ? *tau->read(0, first + j, 1, &given) * lengths_[j] * lengths_[j] : square == 0 ? 0 : 2;
      scales_[j] += 0 * scales_[j];  // infinity becomes NaN
    }
    invert(gram, count, tau != nullptr);
  }

  // Rows of a left operand: entry (l, j) is that of (I + U D)^-1, or of (I + D U)^-T, in row j and column l, over
  // ||v_l||; then come tau ||v||^2 and 1 / ||v||.
  template <class T>
  void write(bool lower, index_t count, index_t width, T* to) const {
    const double* left = symmetric_ ? right_ : left_;
    for (index_t l = 0; l < count; ++l, to += width + 2) {
      const double inverse = 1 / lengths_[l];
      for (index_t j = 0; j < width; ++j) {
        const double entry = lower ? left[j * kReflectorBlock + l] : right_[l * kReflectorBlock + j];
        to[j] = static_cast<T>(entry * inverse);
      }
      to[width] = static_cast<T>(scales_[l]);
      to[width + 1] = static_cast<T>(inverse);
    }
  }

 private:
  // The chunk from neighbouring floats in whole vectors, which are most.
  bool widen(const float* from, index_t row_step, index_t column_step, index_t rows, index_t count) const {
    typedef float Narrow __attribute__((vector_size(kLanes<double> * sizeof(float))));
    if (column_step != 1 || count % kLanes<double> != 0) return false;
    for (index_t c = 0; c < count; c += kLanes<double>) {
      double* to = chunk_.at(0, c);
      for (index_t i = 0; i < rows; ++i, to += chunk_.width) {
        Narrow entries;
        std::memcpy(&entries, from + i * row_step + c, sizeof entries);
        store(to, __builtin_convertvector(entries, Vec<double>));
      }
    }
    return true;
  }
  bool widen(const double*, index_t, index_t, index_t, index_t) const { return false; }

  // Columns of right = (I + U D)^-1 and left = (I + D U)^-1, one after the other: the equation of column j says that
  // its entries above the diagonal are -right[:j, :j] U[:j, j] D_j and -left[:j, :j] D[:j] U[:j, j]. Where D is 2, but
  // for reflectors of zeros, the two are one matrix. Columns are whole vectors, with zeros below the diagonal.
  void invert(const Panels<double>& gram, index_t count, bool free) {
    symmetric_ = !free;
    double inverses[kReflectorBlock];
    for (index_t j = 0; j < count; ++j) inverses[j] = 1 / lengths_[j];
    std::fill_n(right_, kReflectorBlock * kReflectorBlock, 0.0);
    if (free) std::fill_n(left_, kReflectorBlock * kReflectorBlock, 0.0);
    for (index_t j = 0; j < count; ++j) {
      double* right = right_ + j * kReflectorBlock;
      double* left = left_ + j * kReflectorBlock;
      for (index_t l = 0; l < j; ++l) {
        const double overlap = *gram.at(l, j) * inverses[l] * inverses[j];
        add_column(right_ + l * kReflectorBlock, -overlap * scales_[j], l + 1, right);
        if (free) add_column(left_ + l * kReflectorBlock, -overlap * scales_[l], l + 1, left);
      }
      right[j] = 1;
      if (free) left[j] = 1;
    }
  }
  static void add_column(const double* from, double factor, index_t entries, double* to) {
    constexpr index_t lanes = kLanes<double>;
    for (index_t i = 0; i < entries; i += lanes) store(to + i, load(to + i) + factor * load(from + i));
  }

  Panels<double> chunk_;
  double* gram_;
  double *lengths_, *scales_;
  double *right_, *left_;
  bool symmetric_ = false;
};

// One strip of at most a panel's width of columns, of one member of a team.
template <class T>
class Strip {
 public:
  Strip(const Reflectors<T>& reflectors, index_t width, Workspace& workspace)
      : reflectors_(reflectors),
        width_(width),
        data_(workspace.take<T>(reflectors.depth() * width_)),
        products_(workspace.take<T>(reflectors.width() * width_)),
        moves_(workspace.take<T>(reflectors.width() * width_)) {}

  index_t width() const { return width_; }

  // `reads_only`: nothing is to be written back into the strip, so that a matrix of few rows is read where it lies.
  void load(const MatrixView& from, index_t first, index_t count, bool reads_only) {
    count_ = count;
    identity_ = -1;
    known_ = false;
    source_ = data_, source_step_ = width_;
    if (reads_only && from.native<T>() && from.column_step == 1 && count % kLanes<T> == 0 &&
        from.rows <= kRowsInPlace) {
      source_ = from.at<T>(0, first), source_step_ = from.row_step;
      return;
    }
    load_strip(from, 0, reflectors_.length(), first, count, data_, width_, false);
    clear_rest();
  }
  // Whether walk(..., result, ...) does not write into the strip.
  bool reads_only(const MatrixView* result) const {
    return reflectors_.blocks() == 1 && (!result || result->column_step == 1);
  }

  // Columns of the identity. They are written out only where more than one block needs them.
  void load_identity(index_t first, index_t count) {
    count_ = count;
    identity_ = first;
    known_ = false;
    source_ = data_, source_step_ = width_;
    if (reflectors_.blocks() != 1) write_identity();
  }

  // For the coefficients alone of a chain of one block, whose products with the strip are known: they go into rows of
  // width() entries.
  T* set_products(index_t count) {
    count_ = count;
    identity_ = -1;
    known_ = true;
    std::fill_n(products_, reflectors_.width() * width_, T(0));
    return products_;
  }
  // Rows of -P, of width() entries, after a walk without a result through a chain of one block; zeros follow.
  const T* moves(const T* factors) {
    scale(factors, reflectors_.count());
    std::fill_n(moves_ + reflectors_.count() * width_, (reflectors_.width() - reflectors_.count()) * width_, T(0));
    return moves_;
  }

  // X -= V P through the blocks of the chain, into the columns of `result` that begin with `column`; rows of w / ||v||
  // go to `coefficients`, where it is not null, which are `step` apart. Without a result the last block gives its
  // coefficients alone. Where `given`, coefficients of the same columns, are not finite, the results are NaN.
  void walk(const T* factors, bool ascending, T* coefficients, index_t step, const MatrixView* result, index_t column,
            const T* given = nullptr) {
    if (result && reflectors_.blocks() == 0)
      store_strip(data_, width_, *result, 0, reflectors_.length(), column, count_);
    for (index_t turn = 0; turn < reflectors_.blocks(); ++turn) {
      const index_t block = ascending ? turn : reflectors_.blocks() - 1 - turn;
      const index_t first = block * reflectors_.width(), count = reflectors_.block_size(block);
      const T* own = factors + first * reflectors_.factor_step();
      if (identity_ >= 0 && turn == 0) {
        copy_products(first, count);
      } else if (!known_) {
        multiply_vectors(first, count);
      }
      solve(own, count);
      if (given) add_nothing(given + first * step, step, count);
      if (coefficients) {
        for (index_t j = 0; j < count; ++j)
          copy_entries(moves_ + j * width_, count_, coefficients + (first + j) * step);
      }
      const bool last = turn + 1 == reflectors_.blocks();
      if (last && !result) return;
      scale(own, count);
      if (last) {
        finish(first, count, *result, column);
      } else {
        move(first, count, StorePanels<T>{{data_, reflectors_.depth(), width_}, true, T(1)});
      }
    }
  }

 private:
  index_t vectors() const { return (count_ + kLanes<T> - 1) / kLanes<T>; }

  void write_identity() {
    std::fill_n(data_, reflectors_.depth() * width_, T(0));
    for (index_t c = 0; c < count_; ++c) data_[(identity_ + c) * width_ + c] = 1;
  }

  void clear_rest() {
    std::fill_n(data_ + reflectors_.length() * width_, (reflectors_.depth() - reflectors_.length()) * width_, T(0));
  }

  // V^T E of the columns of E that are in this strip.
  void copy_products(index_t first, index_t count) {
    std::fill_n(products_, reflectors_.width() * width_, T(0));
    for (index_t c = 0; c < count_; ++c) {
      const T* row = reflectors_.at(identity_ + c, first);
      for (index_t j = 0; j < count; ++j) products_[j * width_ + c] = row[j * reflectors_.reflector_step()];
    }
  }

  void multiply_vectors(index_t first, index_t count) {
    for (index_t row = 0; row == 0 || row < reflectors_.length(); row += kSumBlock) {
      const index_t rows = std::min(kSumBlock, reflectors_.length() - row);
      const StorePanels<T> finish{{products_, reflectors_.width(), width_}, row > 0, T(1)};
      for (index_t j = 0; j < count; j += kTileRows) {
        with_vectors<T>(vectors(), [&](auto v) {
          Vec<T> sums[kTileRows][v.value];
          multiply_strided_tile<v.value>(reflectors_.at(row, first + j), reflectors_.reflector_step(),
                                         reflectors_.row_step(), source_ + row * source_step_, source_step_, rows,
                                         sums);
          finish(j, 0, sums);
        });
      }
    }
  }

  void solve(const T* factors, index_t count) {
    for (index_t j = 0; j < count; j += kTileRows) {
      with_vectors<T>(vectors(), [&](auto v) {
        Vec<T> sums[kTileRows][v.value];
        multiply_tile<v.value>(factors + j, reflectors_.factor_step(), products_, width_, count, sums);
        for (int i = 0; i < kTileRows; ++i) {
          // Infinity becomes NaN, which no later product with zero can hide.
          for (int u = 0; u < v.value; ++u)
            store(moves_ + (j + i) * width_ + u * kLanes<T>, sums[i][u] + 0 * sums[i][u]);
        }
      });
    }
  }

  void add_nothing(const T* given, index_t step, index_t count) {
    for (index_t j = 0; j < count; ++j) {
      for (index_t c = 0; c < count_; ++c) moves_[j * width_ + c] += 0 * given[j * step + c];
    }
  }

  void scale(const T* factors, index_t count) {
    for (index_t j = 0; j < count; ++j) {
      const T* of_row = factors + j * reflectors_.factor_step() + reflectors_.width();
      const T factor = -of_row[0] * of_row[1];
      T* row = moves_ + j * width_;
      for (index_t u = 0; u < vectors() * kLanes<T>; u += kLanes<T>) store(row + u, subspan::load(row + u) * factor);
    }
  }

  template <class Finish>
  void move(index_t first, index_t count, const Finish& finish) const {
    const T *from = reflectors_.at(0, first), *moves = moves_;
    const index_t row_step = reflectors_.row_step(), step = reflectors_.reflector_step(), width = width_;
    with_vectors<T>(vectors(), [&](auto v) {
      const T* rows = from;
      for (index_t row = 0; row < reflectors_.length(); row += kTileRows, rows += kTileRows * row_step) {
        Vec<T> sums[kTileRows][v.value];
        multiply_strided_tile<v.value>(rows, row_step, step, moves, width, count, sums);
        finish(row, 0, sums);
      }
    });
  }

  // The last move, straight into the result where its rows are contiguous.
  struct StoreResult {
    const T* data;                   // null: columns of the identity, the first with its one in row `identity`
    index_t width, count, identity;  // width: step of the data's rows
    T* to;
    index_t step, rows;

    template <int Vectors>
    [[gnu::always_inline]] void operator()(index_t row, index_t, Vec<T> (&sums)[kTileRows][Vectors]) const {
      const index_t present = std::min<index_t>(kTileRows, rows - row);
      if (data && present == kTileRows && count >= Vectors * kLanes<T>) {  // most tiles: they stay in registers
        const T* from = data + row * width;
        T* target = to + row * step;
#pragma GCC unroll 8
        for (int i = 0; i < kTileRows; ++i, from += width, target += step) {
#pragma GCC unroll 3
          for (int v = 0; v < Vectors; ++v)
            store(target + v * kLanes<T>, subspan::load(from + v * kLanes<T>) + sums[i][v]);
        }
        return;
      }
      Vec<T> tile[kTileRows][Vectors];  // by a number that is not a constant: the sums themselves stay in registers
#pragma GCC unroll 8
      for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
        for (int v = 0; v < Vectors; ++v) tile[i][v] = sums[i][v];
      }
      for (index_t i = 0; i < present; ++i) {
        T* target = to + (row + i) * step;
        for (int v = 0; v < Vectors; ++v) {
          const Vec<T> before = data ? subspan::load(data + (row + i) * width + v * kLanes<T>) : Vec<T>{};
          store_entries(target + v * kLanes<T>, before + tile[i][v], count - v * kLanes<T>);
        }
        const index_t one = row + i - identity;
        if (!data && one >= 0 && one < count) target[one] += 1;
      }
    }
  };

  void finish(index_t first, index_t count, const MatrixView& result, index_t column) {
    const bool identity = identity_ >= 0 && reflectors_.blocks() == 1;
    if (result.column_step == 1) {
      move(first, count,
           StoreResult{identity ? nullptr : source_, source_step_, count_, identity_, result.at<T>(0, column),
                       result.row_step, reflectors_.length()});
      return;
    }
    if (identity) write_identity();
    move(first, count, StorePanels<T>{{data_, reflectors_.depth(), width_}, true, T(1)});
    store_strip(data_, width_, result, 0, reflectors_.length(), column, count_);
  }

  const Reflectors<T>& reflectors_;
  static constexpr index_t kRowsInPlace = 512;  // with more, lines that are far apart drop out of the cache
  index_t width_, count_ = 0, identity_ = -1;
  bool known_ = false;
  const T* source_ = nullptr;
  index_t source_step_ = 0;
  T *data_, *products_, *moves_;
};

}  // namespace subspan
