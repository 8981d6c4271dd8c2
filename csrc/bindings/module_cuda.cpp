// The CUDA module: a list of registrations, nothing else. Built against the host emulator it is the test-only module
// _cuda_emulated.
#include <pybind11/stl.h>

#include "bindings/array_arg.h"
#include "core/cuda/device.h"
#include "ops/coding_rate/spd_logdet.h"

#ifdef SUBSPAN_CUDA_EMULATED
#include "core/cuda/emulator_selftest.h"
#endif

namespace subspan {
namespace {

void bind_coding_rate(py::module_& m) {
  m.def("spd_logdet", [](py::handle A, py::handle logdet, py::handle inverse, py::handle info, bool implicit_identity,
                         std::uintptr_t stream) {
    const ArrayArg a(A, "spd_logdet", "A"), out(logdet, "spd_logdet", "logdet");
    const OptionalArrayArg inv(inverse, "spd_logdet", "inverse"), status(info, "spd_logdet", "info");
    py::gil_scoped_release unlocked;
    spd_logdet_cuda(a.view(), out.view(), inv.view(), status.view(), implicit_identity,
                    reinterpret_cast<void*>(stream));
  });
  m.def("spd_logdet_max_size", [](int itemsize, int device) {
    CHECK(itemsize == 4 || itemsize == 8, "spd_logdet_max_size: itemsize: expected 4 or 8, got ", itemsize);
    return spd_logdet_cuda_max_size(itemsize == 4 ? DType::f32 : DType::f64, device);
  });
}

}  // namespace
}  // namespace subspan

PYBIND11_MODULE(SUBSPAN_MODULE_NAME, m, pybind11::mod_gil_not_used()) {
  using namespace subspan;
  m.attr("version") = SUBSPAN_VERSION;
  m.attr("cuda_version") = kCudaVersion;
  m.def("device_count", &device_count);
  bind_coding_rate(m);
#ifdef SUBSPAN_CUDA_EMULATED
  m.attr("sanitized") = emulator::kSanitized;
  m.def("set_seed", [](unsigned seed) { emulator::seed = seed; });
  m.def("selftest", &emulator::selftest);
#endif
}
