// The family of orthogonal maps. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include <pybind11/stl.h>

#include <deque>

#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/orthogonal/newton_schulz.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;
constexpr const char* kNewtonSchulz = "newton_schulz";

// a, b and c of one step after another.
std::vector<OddPolynomial> polynomials_of(const std::vector<double>& coefficients) {
  CHECK(!coefficients.empty() && coefficients.size() % 3 == 0, kNewtonSchulz,
        ": coefficients: expected three for a step");
  std::vector<OddPolynomial> polynomials;
  for (std::size_t i = 0; i < coefficients.size(); i += 3) {
    polynomials.push_back({coefficients[i], coefficients[i + 1], coefficients[i + 2]});
  }
  return polynomials;
}

void bind_newton_schulz(py::module_& m) {
  m.def("newton_schulz", [](py::handle G, py::handle result, const std::vector<double>& coefficients, int threads) {
    const ArrayArg g(G, kNewtonSchulz, "G"), out(result, kNewtonSchulz, "result");
    check_newton_schulz(g.view(), out.view(), kDevice);
    const auto polynomials = polynomials_of(coefficients);
    py::gil_scoped_release unlocked;
    newton_schulz_cpu({g.view()}, {out.view()}, polynomials, threads);
  });
  m.def("newton_schulz_list",
        [](const py::list& G, const py::list& results, const std::vector<double>& coefficients, int threads) {
          CHECK(G.size() == results.size(), kNewtonSchulz, ": G: expected as many arrays as results");
          std::deque<ArrayArg> arrays;  // keeps what the views borrow
          std::vector<TensorView> inputs, outputs;
          for (std::size_t i = 0; i < G.size(); ++i) {
            inputs.push_back(arrays.emplace_back(G[i], kNewtonSchulz, "G").view());
            outputs.push_back(arrays.emplace_back(results[i], kNewtonSchulz, "result").view());
            check_newton_schulz(inputs.back(), outputs.back(), kDevice);
          }
          const auto polynomials = polynomials_of(coefficients);
          py::gil_scoped_release unlocked;
          newton_schulz_cpu(inputs, outputs, polynomials, threads);
        });
}

}  // namespace

void bind_orthogonal_cpu(py::module_& m) { bind_newton_schulz(m); }

}  // namespace subspan
