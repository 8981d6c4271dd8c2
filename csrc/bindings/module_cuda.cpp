// The CUDA module: a list of registrations, nothing else. Built against the host emulator it is the test-only module
// _cuda_emulated.
#include <pybind11/stl.h>

#include "bindings/array_arg.h"
#include "core/cuda/device.h"
#include "ops/angles/small_eigh.h"
#include "ops/angles/small_svd.h"
#include "ops/coding_rate/khatri_rao.h"
#include "ops/coding_rate/packed_logdet.h"
#include "ops/coding_rate/spd_logdet.h"

#ifdef SUBSPAN_CUDA_EMULATED
#include "core/cuda/emulator_selftest.h"
#endif

namespace subspan {
namespace {

DType dtype_of_size(const char* name, int itemsize) {
  CHECK(itemsize == 4 || itemsize == 8, name, ": itemsize: expected 4 or 8, got ", itemsize);
  return itemsize == 4 ? DType::f32 : DType::f64;
}

// Registers <op>_max_...(itemsize, device): the largest order whose matrices `limit` says fit.
void bind_limit(py::module_& m, const char* name, std::int64_t (*limit)(DType, int)) {
  m.def(name, [name, limit](int itemsize, int device) { return limit(dtype_of_size(name, itemsize), device); });
}

void bind_angles(py::module_& m) {
  m.def("small_eigh", [](py::handle A, py::handle values, py::handle vectors, py::handle info, std::uintptr_t stream) {
    const ArrayArg a(A, "small_eigh", "A"), out(values, "small_eigh", "values");
    const OptionalArrayArg q(vectors, "small_eigh", "vectors"), status(info, "small_eigh", "info");
    py::gil_scoped_release unlocked;
    small_eigh_cuda(a.view(), out.view(), q.view(), status.view(), reinterpret_cast<void*>(stream));
  });
  m.def("small_svd",
        [](py::handle M, py::handle values, py::handle left, py::handle right, py::handle info, std::uintptr_t stream) {
          constexpr const char* op = "small_svd";
          const ArrayArg a(M, op, "M"), out(values, op, "values");
          const OptionalArrayArg u(left, op, "left"), v(right, op, "right"), status(info, op, "info");
          py::gil_scoped_release unlocked;
          small_svd_cuda(a.view(), out.view(), u.view(), v.view(), status.view(), reinterpret_cast<void*>(stream));
        });
  m.def("small_svd_max_length", [](int itemsize, std::int64_t rank, int device) {
    return small_svd_cuda_max_length(dtype_of_size("small_svd_max_length", itemsize), rank, device);
  });
}

void bind_coding_rate(py::module_& m) {
  m.def("khatri_rao_pack", [](py::handle Z, py::handle products, std::uintptr_t stream) {
    const ArrayArg z(Z, "khatri_rao_pack", "Z"), out(products, "khatri_rao_pack", "products");
    py::gil_scoped_release unlocked;
    khatri_rao_pack_cuda(z.view(), out.view(), reinterpret_cast<void*>(stream));
  });
  m.def("khatri_rao_unpack", [](py::handle d_products, py::handle Z, py::handle d_Z, std::uintptr_t stream) {
    const ArrayArg upstream(d_products, "khatri_rao_unpack", "d_products"), z(Z, "khatri_rao_unpack", "Z"),
        out(d_Z, "khatri_rao_unpack", "d_Z");
    py::gil_scoped_release unlocked;
    khatri_rao_unpack_cuda(upstream.view(), z.view(), out.view(), reinterpret_cast<void*>(stream));
  });
  bind_limit(m, "khatri_rao_max_features", &khatri_rao_cuda_max_features);
  m.def("packed_logdet", [](py::handle packed, py::handle scale, py::handle logdet, py::handle info,
                            py::handle gradient, std::uintptr_t stream) {
    const ArrayArg a(packed, "packed_logdet", "packed"), c(scale, "packed_logdet", "scale"),
        out(logdet, "packed_logdet", "logdet");
    const OptionalArrayArg status(info, "packed_logdet", "info"), grad(gradient, "packed_logdet", "gradient");
    py::gil_scoped_release unlocked;
    packed_logdet_cuda(a.view(), c.view(), out.view(), status.view(), grad.view(), reinterpret_cast<void*>(stream));
  });
  bind_limit(m, "packed_logdet_max_size", &packed_logdet_cuda_max_size);
  m.def("spd_logdet", [](py::handle A, py::handle logdet, py::handle inverse, py::handle info, bool implicit_identity,
                         std::uintptr_t stream) {
    const ArrayArg a(A, "spd_logdet", "A"), out(logdet, "spd_logdet", "logdet");
    const OptionalArrayArg inv(inverse, "spd_logdet", "inverse"), status(info, "spd_logdet", "info");
    py::gil_scoped_release unlocked;
    spd_logdet_cuda(a.view(), out.view(), inv.view(), status.view(), implicit_identity,
                    reinterpret_cast<void*>(stream));
  });
  bind_limit(m, "spd_logdet_max_size", &spd_logdet_cuda_max_size);
}

}  // namespace
}  // namespace subspan

PYBIND11_MODULE(SUBSPAN_MODULE_NAME, m, pybind11::mod_gil_not_used()) {
  using namespace subspan;
  m.attr("version") = SUBSPAN_VERSION;
  m.attr("cuda_version") = kCudaVersion;
  m.def("device_count", &device_count);
  bind_angles(m);
  bind_coding_rate(m);
#ifdef SUBSPAN_CUDA_EMULATED
  m.attr("sanitized") = emulator::kSanitized;
  m.def("set_seed", [](unsigned seed) { emulator::seed = seed; });
  m.def("selftest", &emulator::selftest);
#endif
}
