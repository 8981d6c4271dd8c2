// Sparse rows as kernels read them: as many entries in every row, values and indices (*batch, n, k); or CSR, values and
// indices (*batch, nnz) and offsets (*batch, n + 1). Indices and offsets int32 or int64, any strides. Columns and
// offsets are checked where they are read, so that no kernel goes over them only to check.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"
#include "core/half.h"

namespace subspan {

struct SparseArrays {
  const TensorView* values;  // absent where only the places of the entries count
  const TensorView& indices;
  const TensorView* offsets;  // of CSR

  int core() const { return offsets ? 1 : 2; }
  index_t items() const { return batch_count(indices, core()); }
  index_t rows() const { return offsets ? offsets->size(-1) - 1 : indices.size(-2); }
  index_t entries() const { return offsets ? indices.size(-1) : indices.size(-2) * indices.size(-1); }  // of one item
};

inline bool is_index(DType dtype) { return dtype == DType::i32 || dtype == DType::i64; }

inline void check_sparse_arrays(const SparseArrays& rows, index_t columns, Device device, const char* op,
                                const char* name) {
  CHECK(0 < columns && columns < (index_t{1} << 31), op, ": ", name, ": expected fewer than 2**31 columns, got ",
        columns);
  check_input(rows.indices, rows.core(), device, op, name);
  CHECK(is_index(rows.indices.dtype), op, ": ", name, ": expected indices of int32 or int64");
  if (rows.values) {
    check_input(*rows.values, rows.core(), device, op, name);
    CHECK(is_float(rows.values->dtype), op, ": ", name, ": expected floating point values");
    CHECK(rows.values->ndim == rows.indices.ndim, op, ": ", name, ": expected an index for each value");
    for (int i = 0; i < rows.indices.ndim; ++i) {
      CHECK(rows.values->shape[i] == rows.indices.shape[i], op, ": ", name, ": expected an index for each value");
    }
  }
  if (rows.offsets) {
    check_input(*rows.offsets, 1, device, op, name);
    CHECK(is_index(rows.offsets->dtype), op, ": ", name, ": expected offsets of int32 or int64");
    CHECK(rows.offsets->size(-1) >= 1 && batch_count(*rows.offsets, 1) == rows.items(), op, ": ", name,
          ": expected an offset more than rows");
  }
}

// One item of a batch of sparse rows.
class SparseOperand {
 public:
  SparseOperand(const SparseArrays& rows, index_t item, index_t columns, const char* op, const char* name)
      : indices_(batch_item(rows.indices, rows.core(), item)),
        values_(rows.values ? batch_item(*rows.values, rows.core(), item) : nullptr),
        offsets_(rows.offsets ? batch_item(*rows.offsets, 1, item) : nullptr),
        count_(rows.rows()),
        entries_(rows.entries()),
        columns_(columns),
        width_(rows.offsets ? 0 : rows.indices.size(-1)),
        index_row_(rows.offsets ? 0 : rows.indices.step(-2)),
        index_step_(rows.indices.step(-1)),
        offset_step_(rows.offsets ? rows.offsets->step(-1) : 0),
        wide_indices_(rows.indices.dtype == DType::i64),
        wide_offsets_(rows.offsets && rows.offsets->dtype == DType::i64),
        op_(op),
        name_(name) {
    if (rows.values) {
      value_row_ = rows.offsets ? 0 : rows.values->step(-2);
      value_step_ = rows.values->step(-1);
      dtype_ = rows.values->dtype;
    }
    if (rows.offsets) {
      CHECK(offset(0) == 0 && offset(count_) == entries_, op_, ": ", name_, ": expected offsets from 0 to ", entries_,
            ", got ", offset(0), " ... ", offset(count_));
    }
  }

  // The entries of a row: where the first one is among all, and how many there are.
  struct Row {
    index_t first, count, index, value;  // the last two: of the first entry in its array
  };

  index_t rows() const { return count_; }
  index_t entries() const { return entries_; }

  Row row(index_t i) const {
    if (!offsets_) return {i * width_, width_, i * index_row_, i * value_row_};
    const index_t begin = offset(i), end = offset(i + 1);
    CHECK(0 <= begin && begin <= end && end <= entries_, op_, ": ", name_, ": expected offsets that rise from 0 to ",
          entries_, ", got ", begin, " before ", end);
    return {begin, end - begin, begin * index_step_, begin * value_step_};
  }

  index_t column(const Row& row, index_t i) const {
    const index_t at = row.index + i * index_step_;
    const index_t column =
        wide_indices_ ? static_cast<const std::int64_t*>(indices_)[at] : static_cast<const std::int32_t*>(indices_)[at];
    CHECK(0 <= column && column < columns_, op_, ": ", name_, ": expected columns in 0 ... ", columns_ - 1, ", got ",
          column);
    return column;
  }

  template <class T>
  T value(const Row& row, index_t i) const {
    const index_t at = row.value + i * value_step_;
    switch (dtype_) {
      case DType::f32: return static_cast<T>(static_cast<const float*>(values_)[at]);
      case DType::f64: return static_cast<T>(static_cast<const double*>(values_)[at]);
      case DType::bf16: return static_cast<T>(static_cast<const BFloat16*>(values_)[at]);
      default: return static_cast<T>(static_cast<const Float16*>(values_)[at]);
    }
  }

 private:
  index_t offset(index_t i) const {
    return wide_offsets_ ? static_cast<const std::int64_t*>(offsets_)[i * offset_step_]
                         : static_cast<const std::int32_t*>(offsets_)[i * offset_step_];
  }

  const void *indices_, *values_, *offsets_;
  index_t count_, entries_, columns_, width_, index_row_, index_step_, offset_step_;
  index_t value_row_ = 0, value_step_ = 0;
  bool wide_indices_, wide_offsets_;
  DType dtype_ = DType::other;
  const char *op_, *name_;
};

}  // namespace subspan
