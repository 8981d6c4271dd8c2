// What each family registers in a compiled module.
#pragma once
#include <pybind11/pybind11.h>

namespace subspan {

namespace py = pybind11;

void bind_angles_cpu(py::module_& m);
void bind_coding_rate_cpu(py::module_& m);
void bind_dense_cpu(py::module_& m);
void bind_orthogonal_cpu(py::module_& m);
void bind_phm_cpu(py::module_& m);
void bind_search_cpu(py::module_& m);
void bind_sparse_cpu(py::module_& m);
void bind_sparse_products_cpu(py::module_& m);

}  // namespace subspan
