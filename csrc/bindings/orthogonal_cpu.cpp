// The family of orthogonal maps. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/orthogonal/orthonormalize.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void bind_orthonormalize(py::module_& m) {
  m.def("orthonormalize",
        [](py::handle A, py::handle Q, py::handle triangle, py::handle info, bool polar, bool rows, int threads) {
          constexpr const char* op = "orthonormalize";
          const ArrayArg a(A, op, "A"), q(Q, op, "Q");
          const OptionalArrayArg r(triangle, op, "triangle"), status(info, op, "info");
          check_orthonormalize(a.view(), q.view(), r.view(), status.view(), rows, kDevice);
          py::gil_scoped_release unlocked;
          orthonormalize_cpu(a.view(), q.view(), r.view(), status.view(), polar, rows, threads);
        });
  m.def("orthonormalize_gradient", [](py::handle Q, py::handle triangle, py::handle d_Q, py::handle d_triangle,
                                      py::handle d_A, bool polar, bool rows, int threads) {
    constexpr const char* op = "orthonormalize_gradient";
    const ArrayArg q(Q, op, "Q"), r(triangle, op, "triangle"), out(d_A, op, "d_A");
    const OptionalArrayArg dq(d_Q, op, "d_Q"), dr(d_triangle, op, "d_triangle");
    check_orthonormalize_gradient(q.view(), r.view(), dq.view(), dr.view(), out.view(), rows, kDevice);
    py::gil_scoped_release unlocked;
    orthonormalize_gradient_cpu(q.view(), r.view(), dq.view(), dr.view(), out.view(), polar, rows, threads);
  });
}

}  // namespace

void bind_orthogonal_cpu(py::module_& m) { bind_orthonormalize(m); }

}  // namespace subspan
