// The family of hypercomplex products. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/phm/phm_adapter.h"
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

struct MapArgs {
  const ArrayArg A, U, V;
  const OptionalArrayArg bias;
  MapArgs(py::handle a, py::handle u, py::handle v, py::handle b, const char* op, const char* const (&names)[4])
      : A(a, op, names[0]), U(u, op, names[1]), V(v, op, names[2]), bias(b, op, names[3]) {}
  LowRankFactors factors() const { return {A.view(), U.view(), V.view(), bias.view()}; }
};
constexpr const char* kNames[] = {"A", "U", "V", "bias"};

void bind_lowrank(py::module_& m) {
  m.def("phm_linear_lowrank",
        [](py::handle x, py::handle A, py::handle U, py::handle V, py::handle bias, py::handle y, int threads) {
          constexpr const char* op = "phm_linear_lowrank";
          const ArrayArg in(x, op, "x");
          const MapArgs map(A, U, V, bias, op, kNames);
          const OutputArg out(y, op, "y");
          const LowRankFactors factors = map.factors();
          check_phm_lowrank(in.view(), factors, kDevice, op);
          check_output(out.view(), factors.A.dtype, batch_count(in.view(), 1) * factors.outputs(), kDevice, op, "y");
          py::gil_scoped_release unlocked;
          phm_lowrank_cpu(in.view(), factors, out.view(), threads);
        });
  m.def("phm_linear_lowrank_gradient", [](py::handle x, py::handle A, py::handle U, py::handle V, py::handle dy,
                                          py::handle dx, py::handle dA, py::handle dU, py::handle dV, py::handle dbias,
                                          bool wants_x, bool wants_A, bool wants_U, bool wants_V, bool wants_bias,
                                          int threads) {
    constexpr const char* op = "phm_linear_lowrank_gradient";
    const ArrayArg in(x, op, "x"), upstream(dy, op, "dy");
    const MapArgs map(A, U, V, py::none(), op, kNames);
    const OutputArg outputs[] = {{dx, op, "dx"}, {dA, op, "dA"}, {dU, op, "dU"}, {dV, op, "dV"}, {dbias, op, "dbias"}};
    const bool wanted[] = {wants_x, wants_A, wants_U, wants_V, wants_bias};
    const TensorView* to[5];
    for (int i = 0; i < 5; ++i) to[i] = wanted[i] ? &outputs[i].view() : nullptr;
    const LowRankFactors factors = map.factors();
    const LowRankGradients gradients{to[1], to[2], to[3], to[4]};
    check_phm_lowrank_gradient(in.view(), factors, upstream.view(), to[0], gradients, kDevice, op);
    py::gil_scoped_release unlocked;
    phm_lowrank_gradient_cpu(in.view(), factors, upstream.view(), to[0], gradients, threads);
  });
}

constexpr const char* kDownNames[] = {"down_A", "down_U", "down_V", "down_bias"};
constexpr const char* kUpNames[] = {"up_A", "up_U", "up_V", "up_bias"};

AdapterOptions adapter_options(int activation, bool residual) {
  CHECK(0 <= activation && activation < kActivations, "phm_adapter: activation: expected 0 ... 3, got ", activation);
  return {static_cast<Activation>(activation), residual};
}

void bind_adapter(py::module_& m) {
  m.def("phm_adapter",
        [](py::handle x, py::handle A, py::handle U, py::handle V, py::handle bias, py::handle up_A, py::handle up_U,
           py::handle up_V, py::handle up_bias, py::handle y, int activation, bool residual, int threads) {
          constexpr const char* op = "phm_adapter";
          const ArrayArg in(x, op, "x");
          const MapArgs down(A, U, V, bias, op, kDownNames), up(up_A, up_U, up_V, up_bias, op, kUpNames);
          const OutputArg out(y, op, "y");
          const AdapterOptions options = adapter_options(activation, residual);
          check_phm_adapter(in.view(), down.factors(), up.factors(), residual, kDevice);
          const index_t rows = batch_count(in.view(), 1);
          check_output(out.view(), down.A.view().dtype, rows * up.factors().outputs(), kDevice, op, "y");
          py::gil_scoped_release unlocked;
          phm_adapter_cpu(in.view(), down.factors(), up.factors(), out.view(), options, threads);
        });
  m.def("phm_adapter_gradient", [](py::handle x, py::handle A, py::handle U, py::handle V, py::handle bias,
                                   py::handle up_A, py::handle up_U, py::handle up_V, py::handle up_bias, py::handle dy,
                                   py::handle dx, py::handle dA, py::handle dU, py::handle dV, py::handle dbias,
                                   py::handle d_up_A, py::handle d_up_U, py::handle d_up_V, py::handle d_up_bias,
                                   int activation, bool residual, bool wants_x, bool wants_factors, int threads) {
    constexpr const char* op = "phm_adapter_gradient";
    const ArrayArg in(x, op, "x"), upstream(dy, op, "dy");
    const MapArgs down(A, U, V, bias, op, kDownNames), up(up_A, up_U, up_V, up_bias, op, kUpNames);
    const OutputArg to_x(dx, op, "dx"),
        to[] = {{dA, op, "dA"},         {dU, op, "dU"},         {dV, op, "dV"},         {dbias, op, "dbias"},
                {d_up_A, op, "d_up_A"}, {d_up_U, op, "d_up_U"}, {d_up_V, op, "d_up_V"}, {d_up_bias, op, "d_up_bias"}};
    const AdapterOptions options = adapter_options(activation, residual);
    const LowRankFactors first = down.factors(), second = up.factors();
    check_phm_adapter(in.view(), first, second, residual, kDevice);
    check_input(upstream.view(), 2, kDevice, op, "dy");
    CHECK(upstream.view().dtype == first.A.dtype && upstream.view().size(-1) == second.outputs() &&
              batch_count(upstream.view(), 1) == batch_count(in.view(), 1) &&
              batch_count(upstream.view(), 2) == batch_count(in.view(), 2),
          op, ": dy: expected the shape of y");
    if (wants_x) check_output(to_x.view(), first.A.dtype, in.view().numel(), kDevice, op, "dx");
    const LowRankGradients d_first{&to[0].view(), &to[1].view(), &to[2].view(), first.bias ? &to[3].view() : nullptr};
    const LowRankGradients d_second{&to[4].view(), &to[5].view(), &to[6].view(), second.bias ? &to[7].view() : nullptr};
    const index_t items = batch_count(in.view(), 2);
    if (wants_factors) {
      check_lowrank_gradients(first, d_first, items, kDevice, op);
      check_lowrank_gradients(second, d_second, items, kDevice, op);
    }
    py::gil_scoped_release unlocked;
    phm_adapter_gradient_cpu(in.view(), first, second, upstream.view(), wants_x ? &to_x.view() : nullptr,
                             wants_factors ? &d_first : nullptr, wants_factors ? &d_second : nullptr, options, threads);
  });
}

}  // namespace

void bind_phm_cpu(py::module_& m) {
  bind_weight(m);
  bind_linear(m);
  bind_rank(m);
  bind_lowrank(m);
  bind_adapter(m);
}

}  // namespace subspan
