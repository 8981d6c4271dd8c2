// The family of orthogonal maps. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/orthogonal/householder.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void run_householder(const HouseholderArrays& in, const TensorView& result, const TensorView* coefficients,
                     const TensorView* factors, const HouseholderParameters& parameters, int threads, const char* op) {
  check_householder(in, parameters, kDevice);
  check_householder_saved(in, parameters, coefficients, factors, kDevice);
  const std::int64_t length = in.V.size(parameters.rows ? -1 : -2);
  check_output(result, compute_dtype(in.V.dtype), batch_count(in.V, 2) * length * in.columns, kDevice, op, "result");
  CHECK(result.ndim >= 2 && result.size(in.X ? (parameters.right ? -1 : -2) : (parameters.rows ? -1 : -2)) == length,
        op, ": result: expected the length of the reflectors");
  py::gil_scoped_release unlocked;
  householder_cpu(in, result, coefficients, factors, parameters, threads);
}

void run_householder_gradient(const HouseholderArrays& in, const TensorView& coefficients, const TensorView& factors,
                              const TensorView& upstream, const HouseholderGradients& gradients,
                              const HouseholderParameters& parameters, int threads, const char* op) {
  check_householder(in, parameters, kDevice);
  check_householder_saved(in, parameters, &coefficients, &factors, kDevice);
  const DType dtype = compute_dtype(in.V.dtype);
  const bool swapped = in.X ? parameters.right : parameters.rows;
  check_input(upstream, 2, kDevice, op, "upstream");
  CHECK(upstream.dtype == dtype && batch_count(upstream, 2) == batch_count(in.V, 2) &&
            upstream.size(swapped ? -2 : -1) == in.columns &&
            upstream.size(swapped ? -1 : -2) == in.V.size(parameters.rows ? -1 : -2),
        op, ": upstream: expected the shape of the result");
  if (gradients.V) check_output(*gradients.V, dtype, in.V.numel(), kDevice, op, "d_V");
  if (gradients.X) check_output(*gradients.X, dtype, in.X ? in.X->numel() : -1, kDevice, op, "d_X");
  if (gradients.tau) check_output(*gradients.tau, dtype, in.tau ? in.tau->numel() : -1, kDevice, op, "d_tau");
  py::gil_scoped_release unlocked;
  householder_gradient_cpu(in, coefficients, factors, upstream, gradients, parameters, threads);
}

void bind_householder(py::module_& m) {
  m.def("householder_apply", [](py::handle V, py::handle X, py::handle tau, py::handle result, py::handle coefficients,
                                py::handle factors, bool transpose, bool right, bool rows, int threads) {
    constexpr const char* op = "householder_apply";
    const ArrayArg v(V, op, "V"), x(X, op, "X"), out(result, op, "result");
    const OptionalArrayArg t(tau, op, "tau"), w(coefficients, op, "coefficients"), f(factors, op, "factors");
    CHECK(x.view().ndim >= 2, op, ": X: expected a matrix");
    const HouseholderArrays in{v.view(), &x.view(), t.view(), x.view().size(right ? -2 : -1)};
    run_householder(in, out.view(), w.view(), f.view(), {transpose, right, rows}, threads, op);
  });
  m.def("householder_product", [](py::handle V, py::handle tau, py::handle result, py::handle coefficients,
                                  py::handle factors, std::int64_t columns, bool rows, bool lapack, int threads) {
    constexpr const char* op = "householder_product";
    const ArrayArg v(V, op, "V"), out(result, op, "result");
    const OptionalArrayArg t(tau, op, "tau"), w(coefficients, op, "coefficients"), f(factors, op, "factors");
    run_householder({v.view(), nullptr, t.view(), columns}, out.view(), w.view(), f.view(),
                    {false, false, rows, lapack}, threads, op);
  });
  m.def("householder_apply_gradient",
        [](py::handle V, py::handle X, py::handle tau, py::handle coefficients, py::handle factors, py::handle upstream,
           py::handle d_V, py::handle d_X, py::handle d_tau, bool transpose, bool right, bool rows, bool wants_V,
           bool wants_X, bool wants_tau, int threads) {
          constexpr const char* op = "householder_apply";
          const ArrayArg v(V, op, "V"), x(X, op, "X"), w(coefficients, op, "coefficients"), f(factors, op, "factors"),
              g(upstream, op, "upstream"), dv(d_V, op, "d_V"), dx(d_X, op, "d_X");
          const OptionalArrayArg t(tau, op, "tau"), dt(d_tau, op, "d_tau");
          CHECK(x.view().ndim >= 2, op, ": X: expected a matrix");
          const HouseholderArrays in{v.view(), &x.view(), t.view(), x.view().size(right ? -2 : -1)};
          run_householder_gradient(
              in, w.view(), f.view(), g.view(),
              {wants_V ? &dv.view() : nullptr, wants_X ? &dx.view() : nullptr, wants_tau ? dt.view() : nullptr},
              {transpose, right, rows}, threads, op);
        });
  m.def("householder_product_gradient", [](py::handle V, py::handle tau, py::handle coefficients, py::handle factors,
                                           py::handle upstream, py::handle d_V, py::handle d_tau, std::int64_t columns,
                                           bool rows, bool lapack, bool wants_V, bool wants_tau, int threads) {
    constexpr const char* op = "householder_product";
    const ArrayArg v(V, op, "V"), w(coefficients, op, "coefficients"), f(factors, op, "factors"),
        g(upstream, op, "upstream"), dv(d_V, op, "d_V");
    const OptionalArrayArg t(tau, op, "tau"), dt(d_tau, op, "d_tau");
    run_householder_gradient({v.view(), nullptr, t.view(), columns}, w.view(), f.view(), g.view(),
                             {wants_V ? &dv.view() : nullptr, nullptr, wants_tau ? dt.view() : nullptr},
                             {false, false, rows, lapack}, threads, op);
  });
}

}  // namespace

void bind_orthogonal_cpu(py::module_& m) { bind_householder(m); }

}  // namespace subspan
