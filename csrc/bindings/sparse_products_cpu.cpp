// Products with sparse rows, of the family of sparse embeddings. S comes as its indices, offsets (CSR) or None, and
// values.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/sparse/sddmm.h"
#include "ops/sparse/sparse_decode.h"
#include "ops/sparse/sparse_t_dense.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

// Keeps the arrays that a SparseView borrows.
class SparseArg {
 public:
  SparseArg(py::handle values, py::handle indices, py::handle offsets, const char* op)
      : indices_(indices, op, "S.indices"), offsets_(offsets, op, "S.offsets"), values_(values, op, "S.values") {
    CHECK(values_.view(), op, ": S.values: expected an array, got None");
  }
  // Places alone.
  SparseArg(py::handle indices, py::handle offsets, const char* op)
      : indices_(indices, op, "S.indices"), offsets_(offsets, op, "S.offsets"), values_(py::none(), op, "S.values") {}
  SparseView view(index_t columns) const { return {indices_.view(), offsets_.view(), values_.view(), columns}; }

 private:
  ArrayArg indices_;
  OptionalArrayArg offsets_, values_;
};

index_t rows_of(const ArrayArg& array, const char* op, const char* name) {
  check_input(array.view(), 2, kDevice, op, name);
  return array.view().size(-2);
}

void bind_sparse_decode(py::module_& m) {
  m.def("sparse_decode", [](py::handle values, py::handle indices, py::handle offsets, py::handle W, py::handle bias,
                            py::handle out, int threads) {
    constexpr const char* op = "sparse_decode";
    const SparseArg s(values, indices, offsets, op);
    const ArrayArg w(W, op, "W");
    const OptionalArrayArg b(bias, op, "bias");
    const OutputArg result(out, op, "out");
    const SparseView S = s.view(rows_of(w, op, "W"));
    check_sparse_decode(S, w.view(), b.view(), result.view(), kDevice);
    py::gil_scoped_release unlocked;
    sparse_decode_cpu(S, w.view(), b.view(), result.view(), threads);
  });
  m.def("sparse_decode_gradient", [](py::handle G, py::handle values, py::handle indices, py::handle offsets,
                                     py::handle W, py::handle d_values, py::handle d_W, int threads) {
    constexpr const char* op = "sparse_decode";
    const SparseArg s(values, indices, offsets, op);
    const ArrayArg g(G, op, "upstream"), w(W, op, "W");
    const OutputArg dv(d_values, op, "d_values"), dw(d_W, op, "d_W");
    const SparseView S = s.view(rows_of(w, op, "W"));
    check_sparse_decode_gradient(g.view(), S, w.view(), dv.view(), dw.view(), kDevice);
    py::gil_scoped_release unlocked;
    sparse_decode_gradient_cpu(g.view(), S, w.view(), dv.view(), dw.view(), threads);
  });
}

void bind_sddmm(py::module_& m) {
  m.def("sddmm", [](py::handle G, py::handle W, py::handle indices, py::handle offsets, py::handle out, int threads) {
    constexpr const char* op = "sddmm";
    const SparseArg s(indices, offsets, op);
    const ArrayArg g(G, op, "G"), w(W, op, "W");
    const OutputArg result(out, op, "out");
    const SparseView S = s.view(rows_of(w, op, "W"));
    check_sddmm(g.view(), w.view(), S, result.view(), kDevice);
    py::gil_scoped_release unlocked;
    sddmm_cpu(g.view(), w.view(), S, result.view(), threads);
  });
}

void bind_sparse_t_dense(py::module_& m) {
  m.def("sparse_t_dense", [](py::handle values, py::handle indices, py::handle offsets, py::handle G, py::handle out,
                             index_t columns, int threads) {
    constexpr const char* op = "sparse_t_dense";
    const SparseArg s(values, indices, offsets, op);
    const ArrayArg g(G, op, "G");
    const OutputArg result(out, op, "out");
    const SparseView S = s.view(columns);
    check_sparse_t_dense(S, g.view(), result.view(), kDevice);
    py::gil_scoped_release unlocked;
    sparse_t_dense_cpu(S, g.view(), result.view(), threads);
  });
  m.def("sparse_t_dense_gradient", [](py::handle U, py::handle values, py::handle indices, py::handle offsets,
                                      py::handle G, py::handle d_values, py::handle d_G, int threads) {
    constexpr const char* op = "sparse_t_dense";
    const SparseArg s(values, indices, offsets, op);
    const ArrayArg u(U, op, "upstream"), g(G, op, "G");
    const OutputArg dv(d_values, op, "d_values"), dg(d_G, op, "d_G");
    const SparseView S = s.view(rows_of(u, op, "upstream"));
    check_sparse_t_dense_gradient(u.view(), S, g.view(), dv.view(), dg.view(), kDevice);
    py::gil_scoped_release unlocked;
    sparse_t_dense_gradient_cpu(u.view(), S, g.view(), dv.view(), dg.view(), threads);
  });
}

// What the gradient of sparse_decode in W takes where it is not a fresh dense matrix.
void bind_weight_rows(py::module_& m) {
  m.def("used_columns", [](py::handle indices, py::handle offsets, py::handle used, index_t columns, int threads) {
    constexpr const char* op = "sparse_decode";
    const SparseArg s(indices, offsets, op);
    const OutputArg list(used, op, "columns");
    const SparseView S = s.view(columns);
    check_used_columns(S, list.view(), kDevice);
    py::gil_scoped_release unlocked;
    return used_columns_cpu(S, list.view(), threads);
  });
  m.def("weight_rows", [](py::handle values, py::handle indices, py::handle offsets, py::handle G, py::handle W,
                          py::handle d_values, py::handle rows, index_t columns, bool added, int threads) {
    constexpr const char* op = "sparse_decode";
    const SparseArg s(values, indices, offsets, op);
    const ArrayArg g(G, op, "upstream");
    const OptionalArrayArg w(W, op, "W");
    const OptionalOutputArg dv(d_values, op, "d_values");
    const OutputArg result(rows, op, "W.grad");
    const SparseView S = s.view(columns);
    check_weight_rows(S, g.view(), w.view(), dv.view(), result.view(), added, kDevice);
    py::gil_scoped_release unlocked;
    weight_rows_cpu(S, g.view(), w.view(), dv.view(), result.view(), added, threads);
  });
}

}  // namespace

void bind_sparse_products_cpu(py::module_& m) {
  bind_sparse_decode(m);
  bind_sddmm(m);
  bind_sparse_t_dense(m);
  bind_weight_rows(m);
}

}  // namespace subspan
