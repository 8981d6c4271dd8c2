// Dense products that layers are made of. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/dense/affine_product.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void bind_affine(py::module_& m) {
  m.def("affine_product", [](py::handle A, py::handle B, py::handle E, py::handle result, double scale, double shift,
                             bool relu, int threads) {
    constexpr const char* op = "ista";  // the public function that hands its arrays on
    const ArrayArg a(A, op, "x"), b(B, op, "D");
    const OutputArg out(result, op, "result");
    const OptionalArrayArg e(E, op, "E");
    check_affine_product(a.view(), b.view(), e.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    affine_product_cpu(a.view(), b.view(), e.view(), out.view(), {scale, shift, relu}, threads);
  });
}

}  // namespace

void bind_dense_cpu(py::module_& m) { bind_affine(m); }

}  // namespace subspan
