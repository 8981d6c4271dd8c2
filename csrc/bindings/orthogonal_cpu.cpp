// Orthogonal maps. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/orthogonal/cayley.h"
#include "ops/orthogonal/skew_expm.h"
#include "ops/orthogonal/stiefel_retract.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void bind_cayley(py::module_& m) {
  m.def("cayley", [](py::handle A, py::handle Q, py::handle W, int threads) {
    constexpr const char* op = "cayley";
    const ArrayArg a(A, op, "A"), out(Q, op, "Q");
    const OptionalArrayArg saved(W, op, "W");
    check_cayley(a.view(), out.view(), saved.view(), kDevice);
    py::gil_scoped_release unlocked;
    cayley_cpu(a.view(), out.view(), saved.view(), threads);
  });
  m.def("cayley_gradient", [](py::handle W, py::handle G, py::handle d_A, int threads) {
    constexpr const char* op = "cayley_gradient";
    const ArrayArg w(W, op, "W"), g(G, op, "G"), out(d_A, op, "d_A");
    check_cayley_gradient(w.view(), g.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    cayley_gradient_cpu(w.view(), g.view(), out.view(), threads);
  });
}

void bind_skew_expm(py::module_& m) {
  m.def("skew_expm", [](py::handle A, py::handle Q, int threads) {
    constexpr const char* op = "skew_expm";
    const ArrayArg a(A, op, "A"), out(Q, op, "Q");
    check_skew_expm(a.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    skew_expm_cpu(a.view(), out.view(), threads);
  });
  m.def("skew_expm_gradient", [](py::handle A, py::handle Q, py::handle G, py::handle d_A, int threads) {
    constexpr const char* op = "skew_expm_gradient";
    const ArrayArg a(A, op, "A"), q(Q, op, "Q"), g(G, op, "G"), out(d_A, op, "d_A");
    check_skew_expm_gradient(a.view(), q.view(), g.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    skew_expm_gradient_cpu(a.view(), q.view(), g.view(), out.view(), threads);
  });
}

void bind_stiefel(py::module_& m) {
  m.def("stiefel_retract", [](py::handle X, py::handle V, py::handle result, int method, bool rows, int threads) {
    constexpr const char* op = "retract";
    const ArrayArg x(X, op, "X"), v(V, op, "V"), out(result, op, "result");
    check_stiefel_retract(x.view(), v.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    stiefel_retract_cpu(x.view(), v.view(), out.view(), static_cast<Retraction>(method), rows, threads);
  });
}

}  // namespace

void bind_orthogonal_cpu(py::module_& m) {
  bind_cayley(m);
  bind_skew_expm(m);
  bind_stiefel(m);
}

}  // namespace subspan
