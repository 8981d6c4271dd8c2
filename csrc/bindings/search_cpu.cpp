// The index of sparse documents. The object is bound as it is; `subspan.SparseIndex` wraps it.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "core/check_view.h"
#include "ops/search/index_file.h"
#include "ops/search/sketch.h"

namespace subspan {
namespace {

// Borrows three arrays of CSR; keep it while the view is used.
class RowsArg {
 public:
  RowsArg(py::handle offsets, py::handle indices, py::handle values, const char* op, const char* name,
          index_t first = 0)
      : offsets_(offsets, op, name), indices_(indices, op, name), values_(values, op, name) {
    const TensorView &starts = offsets_.view(), &columns = indices_.view(), &entries = values_.view();
    for (const TensorView* array : {&starts, &columns, &entries}) {
      CHECK(array->device == Device::cpu && array->ndim == 1 && (array->shape[0] <= 1 || array->stride[0] == 1), op,
            ": ", name, ": expected contiguous arrays of one dimension in host memory");
    }
    CHECK(starts.dtype == DType::i64 && starts.shape[0] >= 1, op, ": ", name, ": expected int64 offsets (n + 1,)");
    CHECK(columns.dtype == DType::i32 || columns.dtype == DType::i64, op, ": ", name,
          ": expected int32 or int64 indices");
    CHECK(entries.dtype == DType::f32 || entries.dtype == DType::f64, op, ": ", name,
          ": expected float32 or float64 values");
    CHECK(columns.shape[0] == entries.shape[0], op, ": ", name, ": expected as many indices as values, got ",
          columns.shape[0], " and ", entries.shape[0]);
    view_ = {starts.ptr<const std::int64_t>(),
             columns.data,
             entries.data,
             columns.dtype,
             entries.dtype,
             starts.shape[0] - 1,
             columns.shape[0],
             first,
             op,
             name};
  }
  const SparseRowsView& view() const { return view_; }

 private:
  ArrayArg offsets_, indices_, values_;
  SparseRowsView view_;
};

template <class T>
T* matrix_memory(const ArrayArg& array, DType dtype, index_t rows, index_t columns, const char* op, const char* name) {
  const TensorView& view = array.view();
  CHECK(view.device == Device::cpu && view.dtype == dtype && view.ndim == 2 && (view.numel() == 0 || is_packed(view)) &&
            view.shape[0] == rows && view.shape[1] == columns,
        op, ": ", name, ": expected a contiguous array (", rows, ", ", columns, ") of its type");
  return view.ptr<T>();
}

SearchIndex* make_index(index_t columns, int values, index_t window, double bitmap_share) {
  constexpr const char* op = "SparseIndex.build";
  CHECK(1 <= columns && columns <= kMostIndexColumns, op, ": rows: expected 1 ... ", kMostIndexColumns,
        " columns, got ", columns, "; renumber those that occur");
  CHECK(0 <= values && values <= 2, op, ": values: expected a type of values, got ", values);
  CHECK(64 <= window && window <= kMostWindowDocuments && window % 64 == 0, op,
        ": window: expected a multiple of 64 in 64 ... ", kMostWindowDocuments, ", got ", window);
  CHECK(bitmap_share > 0, op, ": bitmap_share: expected a number > 0, got ", bitmap_share);
  return new SearchIndex({columns, static_cast<ValueType>(values), window, bitmap_share});
}

py::tuple search_rows(const SearchIndex& self, py::handle offsets, py::handle indices, py::handle values,
                      py::handle scores, py::handle ids, py::handle error_bound, index_t candidates, index_t first,
                      int threads, const char* op) {
  const RowsArg queries(offsets, indices, values, op, "queries", first);
  const OutputArg score_array(scores, op, "scores"), id_array(ids, op, "ids"), bounds(error_bound, op, "error_bound");
  const auto content = self.content();
  const index_t n = queries.view().rows, k = score_array.view().ndim == 2 ? score_array.view().shape[1] : 0;
  CHECK(k <= content->documents, op, ": k: expected at most the documents ", content->documents, ", got ", k);
  const SearchOutput out{matrix_memory<float>(score_array, DType::f32, n, k, op, "scores"),
                         matrix_memory<std::int64_t>(id_array, DType::i64, n, k, op, "ids"),
                         matrix_memory<double>(bounds, DType::f64, n, 1, op, "error_bound"), k};
  SearchCost cost;
  {
    py::gil_scoped_release unlocked;
    cost = candidates == 0 ? subspan::search(*content, queries.view(), out, threads)
                           : search_approximately(*content, queries.view(), candidates, out, threads);
  }
  return py::make_tuple(cost.predicted, cost.postings, cost.windows, cost.looked_up);
}

// The content of a file that a Python buffer holds; the last search lets go of it.
SearchIndex* open_buffer(const py::buffer& buffer, bool later, int threads, const char* op) {
  auto* info = new py::buffer_info(buffer.request());
  const std::shared_ptr<const char> memory(static_cast<const char*>(info->ptr), [info](const char*) {
    const py::gil_scoped_acquire locked;
    delete info;
  });
  const auto bytes = static_cast<std::size_t>(info->size * info->itemsize);
  CHECK(info->ndim == 1 && info->itemsize == 1 && reinterpret_cast<std::uintptr_t>(info->ptr) % 8 == 0, op,
        ": path: expected aligned bytes");
  std::shared_ptr<const IndexContent> content;
  {
    py::gil_scoped_release unlocked;
    content = open_file(memory, bytes, later, threads, op);
  }
  return new SearchIndex(std::move(content));
}

}  // namespace

void bind_search_cpu(py::module_& m) {
  m.def("score_rows",
        [](py::handle offsets, py::handle indices, py::handle values, py::handle row_offsets, py::handle row_indices,
           py::handle row_values, index_t columns, py::handle ids, py::handle scores, int threads, const char* op) {
          const RowsArg queries(offsets, indices, values, op, "queries");
          const RowsArg rows(row_offsets, row_indices, row_values, op, "rerank");
          const ArrayArg id_array(ids, op, "ids");
          const OutputArg score_array(scores, op, "scores");
          CHECK(1 <= columns && columns <= kMostIndexColumns, op, ": rerank: expected 1 ... ", kMostIndexColumns,
                " columns, got ", columns);
          const index_t n = queries.view().rows, k = score_array.view().ndim == 2 ? score_array.view().shape[1] : 0;
          const auto* chosen = matrix_memory<const std::int64_t>(id_array, DType::i64, n, k, op, "ids");
          auto* out = matrix_memory<float>(score_array, DType::f32, n, k, op, "scores");
          py::gil_scoped_release unlocked;
          score_rows(queries.view(), rows.view(), columns, chosen, k, out, std::max(threads, 1));
        });
  py::class_<SearchIndex>(m, "SearchIndex")
      .def(py::init(&make_index))
      .def("add",
           [](SearchIndex& self, py::handle offsets, py::handle indices, py::handle values, index_t first, int threads,
              const char* op) {
             const RowsArg rows(offsets, indices, values, op, "rows", first);
             const auto before = self.content();
             std::shared_ptr<const IndexContent> after;
             {
               py::gil_scoped_release unlocked;
               after = with_documents(*before, rows.view(), threads);
             }
             self.replace(std::move(after));
           })
      // Another name for the same content, which stays while this one's is replaced.
      .def("copy", [](const SearchIndex& self) { return new SearchIndex(self.content()); })
      .def("become", [](SearchIndex& self, const SearchIndex& other) { self.replace(other.content()); })
      .def_static("open", &open_buffer)
      // What a file holds, one part after the other; the parts share the memory of this object.
      .def("parts",
           [](const SearchIndex& self) {
             const auto content = self.content();
             py::list parts;
             parts.append(py::bytes(file_start(*content)));
             for (const Window& window : content->windows) {
               parts.append(py::memoryview::from_memory(window.view.data(),
                                                        static_cast<py::ssize_t>(window.view.header().bytes)));
             }
             return parts;
           })
      .def("search", &search_rows)
      .def("facts", [](const SearchIndex& self) {
        const auto content = self.content();
        py::dict facts;
        facts["documents"] = content->documents;
        facts["columns"] = content->settings.columns;
        facts["values"] = static_cast<int>(content->settings.values);
        facts["window"] = content->settings.window;
        facts["windows"] = content->windows.size();
        facts["postings"] = content->postings;
        facts["bytes"] = content->bytes + content->terms->size() * sizeof(TermSummary);
        facts["sketch_bytes"] = content->sketch->bytes();
        facts["largest_scale"] = content->largest_scale;
        return facts;
      });
}

}  // namespace subspan
