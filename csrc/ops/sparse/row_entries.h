// Sparse rows as kernels see them. Two layouts: as many entries in every row, indices and values (*batch, n, k); or
// CSR, indices and values (*batch, nnz) and offsets (*batch, n + 1). Indices and offsets are int32 or int64; any
// strides. Entries of one column add up. Every index is compared with the number of columns where it is read.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"
#include "core/pack.h"

namespace subspan {

struct SparseView {
  const TensorView& indices;
  const TensorView* offsets;
  const TensorView* values;  // absent where only the places matter
  index_t columns;

  int core() const { return offsets ? 1 : 2; }
  index_t items() const { return batch_count(indices, core()); }
  index_t rows() const { return offsets ? offsets->size(-1) - 1 : indices.size(-2); }
  index_t entries() const { return offsets ? indices.size(-1) : indices.size(-2) * indices.size(-1); }
};

inline bool is_index(DType dtype) { return dtype == DType::i32 || dtype == DType::i64; }

inline void check_sparse(const SparseView& S, Device device, const char* op) {
  check_input(S.indices, S.core(), device, op, "S");
  CHECK(is_index(S.indices.dtype), op, ": S: expected indices of type int32 or int64");
  if (S.offsets) {
    check_input(*S.offsets, 1, device, op, "S");
    CHECK(is_index(S.offsets->dtype) && S.offsets->size(-1) >= 1 && batch_count(*S.offsets, 1) == S.items(), op,
          ": S: expected offsets of type int32 or int64, one more than rows");
  }
  if (S.values) {
    check_input(*S.values, S.core(), device, op, "S");
    CHECK(is_float(S.values->dtype), op, ": S: expected floating point values");
    bool same = S.values->ndim == S.indices.ndim;
    for (int i = 0; same && i < S.indices.ndim; ++i) same = S.values->shape[i] == S.indices.shape[i];
    CHECK(same, op, ": S: expected values of the shape of the indices");
  }
  CHECK(S.columns >= 1, op, ": S: expected at least one column");
  CHECK(S.rows() < (index_t{1} << 31), op, ": S: expected fewer than 2^31 rows");
}

// A dense operand with `rows` rows for every item of S; rows < 0: any number.
inline void check_operand(const TensorView& array, const SparseView& S, index_t rows, DType compute, Device device,
                          const char* op, const char* name) {
  check_input(array, 2, device, op, name);
  CHECK(is_float(array.dtype) && compute_dtype(array.dtype) == compute, op, ": ", name,
        ": expected a floating point type that goes with the others");
  CHECK(batch_count(array, 2) == S.items(), op, ": ", name, ": expected the batch dimensions of S");
  CHECK(array.size(-2) == rows, op, ": ", name, ": expected ", rows, " rows, got ", array.size(-2));
}

// A result of the type that is computed in, or of half precision, which it is rounded to.
inline void check_rounded_output(const TensorView& view, DType compute, index_t elements, Device device, const char* op,
                                 const char* name) {
  CHECK(is_float(view.dtype) && compute_dtype(view.dtype) == compute, op, ": ", name, ": wrong dtype");
  check_output(view, view.dtype, elements, device, op, name);
}

// The entries of one item. Reads are of neighbouring entries of one row.
template <class T>
class RowEntries {
 public:
  RowEntries(const SparseView& S, index_t item, const char* op)
      : op_(op),
        indices_(batch_item(S.indices, S.core(), item)),
        offsets_(S.offsets ? batch_item(*S.offsets, 1, item) : nullptr),
        values_(S.values ? batch_item(*S.values, S.core(), item) : nullptr, S.values ? S.values->dtype : DType::f32,
                S.values && !S.offsets ? S.values->step(-2) : 0, S.values ? S.values->step(-1) : 0),
        row_step_(S.offsets ? 0 : S.indices.step(-2)),
        step_(S.indices.step(-1)),
        offset_step_(S.offsets ? S.offsets->step(-1) : 0),
        rows_(S.rows()),
        entries_(S.entries()),
        per_row_(S.offsets ? 0 : S.indices.size(-1)),
        columns_(S.columns),
        wide_indices_(S.indices.dtype == DType::i64),
        wide_offsets_(S.offsets && S.offsets->dtype == DType::i64) {
    if (offsets_) {
      CHECK(offset(0) == 0 && offset(rows_) == entries_, op_, ": S: expected offsets from 0 to ", entries_, ", got ",
            offset(0), " ... ", offset(rows_));
    }
  }

  index_t rows() const { return rows_; }
  index_t entries() const { return entries_; }
  index_t columns() const { return columns_; }

  // Entries are numbered row by row.
  index_t begin(index_t row) const { return offsets_ ? offset(row) : row * per_row_; }
  index_t count(index_t row) const {
    if (!offsets_) return per_row_;
    const index_t first = offset(row), last = offset(row + 1);
    CHECK(0 <= first && first <= last && last <= entries_, op_, ": S: expected offsets that rise from 0 to ", entries_,
          ", got ", first, " before ", last);
    return last - first;
  }

  // The columns of `count` entries from `first` on, counted within the row.
  void read_columns(index_t row, index_t first, index_t count, index_t* to) const {
    const index_t at = offsets_ ? (begin(row) + first) * step_ : row * row_step_ + first * step_;
    wide_indices_ ? copy<std::int64_t>(at, count, to) : copy<std::int32_t>(at, count, to);
    index_t low = 0, high = -1;
    for (index_t i = 0; i < count; ++i) low = std::min(low, to[i]), high = std::max(high, to[i]);
    CHECK(low >= 0 && high < columns_, op_, ": S: expected indices in 0 ... ", columns_ - 1, ", got ",
          low < 0 ? low : high);
  }

  const T* read_values(index_t row, index_t first, index_t count, T* scratch) const {
    return offsets_ ? values_.read(0, begin(row) + first, count, scratch) : values_.read(row, first, count, scratch);
  }

 private:
  index_t offset(index_t row) const {
    return wide_offsets_ ? static_cast<const std::int64_t*>(offsets_)[row * offset_step_]
                         : static_cast<const std::int32_t*>(offsets_)[row * offset_step_];
  }
  template <class Index>
  void copy(index_t at, index_t count, index_t* to) const {
    const Index* from = static_cast<const Index*>(indices_) + at;
    for (index_t i = 0; i < count; ++i) to[i] = from[i * step_];
  }

  const char* op_;
  const void* indices_;
  const void* offsets_;
  Rows<T> values_;
  index_t row_step_, step_, offset_step_, rows_, entries_, per_row_, columns_;
  bool wide_indices_, wide_offsets_;
};

}  // namespace subspan
