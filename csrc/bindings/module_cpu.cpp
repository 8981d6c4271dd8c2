// The CPU module: its families and what it says of itself.
#include <vector>

#include "bindings/families.h"
#include "core/measure.h"
#include "core/parallel.h"

namespace subspan {
namespace {

#ifdef SUBSPAN_SANITIZE
// Reads one entry past a heap buffer, so that the tests can see that the sanitizer would have seen it.
int sanitizer_selftest() {
  std::vector<int> buffer(4, 1);
  const volatile int* data = buffer.data();
  return data[4];
}
#endif

}  // namespace
}  // namespace subspan

PYBIND11_MODULE(SUBSPAN_MODULE_NAME, m, pybind11::mod_gil_not_used()) {
  using namespace subspan;
  m.attr("version") = SUBSPAN_VERSION;
  m.attr("level") = SUBSPAN_CPU_LEVEL;
  m.def("max_threads", [] { return omp_get_max_threads(); });
  m.def("measure_fma_peak", &measure_fma_peak, py::arg("seconds"), py::arg("threads"));
  m.def("gemm_benchmark", &measure_gemm, py::arg("n"), py::arg("repeats"));
  bind_angles_cpu(m);
  bind_coding_rate_cpu(m);
  bind_dense_cpu(m);
  bind_orthogonal_cpu(m);
  bind_phm_cpu(m);
  bind_search_cpu(m);
  bind_sparse_cpu(m);
  bind_sparse_products_cpu(m);
#ifdef SUBSPAN_SANITIZE
  m.def("sanitizer_selftest", &sanitizer_selftest);
#endif
}
