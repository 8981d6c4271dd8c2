// The family of hypercomplex products. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/phm/phm_linear.h"
#include "ops/phm/phm_lowrank.h"
#include "ops/phm/phm_rank.h"
#include "ops/phm/phm_weight.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void bind_weight(py::module_& m) {
  m.def("phm_weight", [](py::handle A, py::handle S, py::handle W, int threads) {
    constexpr const char* op = "phm_weight";
    const ArrayArg a(A, op, "A"), s(S, op, "S");
    const OutputArg out(W, op, "W");
    check_phm_weight(a.view(), s.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    phm_weight_cpu(a.view(), s.view(), out.view(), threads);
  });
  m.def("phm_weight_gradient", [](py::handle A, py::handle S, py::handle dW, py::handle dA, py::handle dS, bool wants_A,
                                  bool wants_S, int threads) {
    constexpr const char* op = "phm_weight_gradient";
    const ArrayArg a(A, op, "A"), s(S, op, "S"), upstream(dW, op, "dW");
    const OutputArg gradient_A(dA, op, "dA"), gradient_S(dS, op, "dS");
    const TensorView* to_A = wants_A ? &gradient_A.view() : nullptr;
    const TensorView* to_S = wants_S ? &gradient_S.view() : nullptr;
    check_phm_weight_gradient(a.view(), s.view(), upstream.view(), to_A, to_S, kDevice);
    py::gil_scoped_release unlocked;
    phm_weight_gradient_cpu(a.view(), s.view(), upstream.view(), to_A, to_S, threads);
  });
}

void bind_linear(py::module_& m) {
  m.def("phm_linear", [](py::handle x, py::handle A, py::handle S, py::handle bias, py::handle y, int method,
                         int threads) {
    constexpr const char* op = "phm_linear";
    const ArrayArg in(x, op, "x"), a(A, op, "A"), s(S, op, "S");
    const OptionalArrayArg added(bias, op, "bias");
    const OutputArg out(y, op, "y");
    CHECK(0 <= method && method <= 2, op, ": method: expected 0, 1 or 2, got ", method);
    check_phm_linear(in.view(), a.view(), s.view(), added.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    phm_linear_cpu(in.view(), a.view(), s.view(), added.view(), out.view(), static_cast<PhmMethod>(method), threads);
  });
  m.def("phm_linear_gradient", [](py::handle x, py::handle A, py::handle S, py::handle dy, py::handle dx, py::handle dA,
                                  py::handle dS, py::handle dbias, bool wants_x, bool wants_A, bool wants_S,
                                  bool wants_bias, int threads) {
    constexpr const char* op = "phm_linear_gradient";
    const ArrayArg in(x, op, "x"), a(A, op, "A"), s(S, op, "S"), upstream(dy, op, "dy");
    const OutputArg outputs[] = {{dx, op, "dx"}, {dA, op, "dA"}, {dS, op, "dS"}, {dbias, op, "dbias"}};
    const bool wanted[] = {wants_x, wants_A, wants_S, wants_bias};
    const TensorView* to[4];
    for (int i = 0; i < 4; ++i) to[i] = wanted[i] ? &outputs[i].view() : nullptr;
    check_phm_linear_gradient(in.view(), a.view(), s.view(), upstream.view(), to[0], to[1], to[2], to[3], kDevice);
    py::gil_scoped_release unlocked;
    phm_linear_gradient_cpu(in.view(), a.view(), s.view(), upstream.view(), to[0], to[1], to[2], to[3], threads);
  });
}

void bind_rank(py::module_& m) {
  m.def("phm_rank", [](py::handle x, py::handle P, py::handle V, py::handle U, py::handle S, py::handle bias,
                       py::handle y, bool transposed, int threads) {
    const char* op = U.is_none() ? "phm_linear_rank1" : "phm_linear";  // who calls
    const ArrayArg in(x, op, "x"), outer(P, op, "left"), inner(V, op, "right"), s(S, op, "S");
    const OptionalArrayArg terms(U, op, "U"), added(bias, op, "bias");
    const OutputArg out(y, op, "y");
    check_phm_rank(in.view(), outer.view(), inner.view(), terms.view(), s.view(), added.view(), out.view(), transposed,
                   kDevice);
    py::gil_scoped_release unlocked;
    phm_rank_cpu(in.view(), outer.view(), inner.view(), terms.view(), s.view(), added.view(), out.view(), transposed,
                 threads);
  });
}

void bind_lowrank(py::module_& m) {
  m.def("phm_linear_lowrank",
        [](py::handle x, py::handle A, py::handle U, py::handle V, py::handle bias, py::handle y, int threads) {
          constexpr const char* op = "phm_linear_lowrank";
          const ArrayArg in(x, op, "x"), a(A, op, "A"), u(U, op, "U"), v(V, op, "V");
          const OptionalArrayArg added(bias, op, "bias");
          const OutputArg out(y, op, "y");
          check_phm_lowrank(in.view(), a.view(), u.view(), v.view(), added.view(), out.view(), kDevice);
          py::gil_scoped_release unlocked;
          phm_lowrank_cpu(in.view(), a.view(), u.view(), v.view(), added.view(), out.view(), threads);
        });
}

}  // namespace

void bind_phm_cpu(py::module_& m) {
  bind_weight(m);
  bind_linear(m);
  bind_rank(m);
  bind_lowrank(m);
}

}  // namespace subspan
