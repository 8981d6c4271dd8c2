// The family of orthogonal maps. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include <pybind11/stl.h>

#include <deque>

#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/orthogonal/cayley.h"
#include "ops/orthogonal/householder.h"
#include "ops/orthogonal/muon_step.h"
#include "ops/orthogonal/newton_schulz.h"
#include "ops/orthogonal/orthonormalize.h"
#include "ops/orthogonal/skew_expm.h"
#include "ops/orthogonal/stiefel_retract.h"
#include "ops/orthogonal/stiefel_step.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void bind_cayley(py::module_& m) {
  m.def("cayley", [](py::handle A, py::handle Q, py::handle W, int threads) {
    constexpr const char* op = "cayley";
    const ArrayArg a(A, op, "A");
    const OutputArg out(Q, op, "Q");
    const OptionalOutputArg saved(W, op, "W");
    check_cayley(a.view(), out.view(), saved.view(), kDevice);
    py::gil_scoped_release unlocked;
    cayley_cpu(a.view(), out.view(), saved.view(), threads);
  });
  m.def("cayley_gradient", [](py::handle W, py::handle G, py::handle d_A, int threads) {
    constexpr const char* op = "cayley_gradient";
    const ArrayArg w(W, op, "W"), g(G, op, "G");
    const OutputArg out(d_A, op, "d_A");
    check_cayley_gradient(w.view(), g.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    cayley_gradient_cpu(w.view(), g.view(), out.view(), threads);
  });
  m.def("cayley_of_triangle",
        [](py::handle A, py::handle base, py::handle Q, py::handle W, py::handle turned, int threads) {
          constexpr const char* op = "cayley_of_triangle";
          const ArrayArg a(A, op, "A");
          const OptionalArrayArg b(base, op, "base");
          const OutputArg out(Q, op, "Q");
          const OptionalOutputArg saved(W, op, "W"), product(turned, op, "turned");
          const CayleyOfTriangle in{a.view(), b.view()};
          check_cayley_of_triangle(in, out.view(), saved.view(), product.view(), kDevice);
          py::gil_scoped_release unlocked;
          cayley_of_triangle_cpu(in, out.view(), saved.view(), product.view(), threads);
        });
  m.def("cayley_of_triangle_gradient", [](py::handle W, py::handle turned, py::handle G, py::handle d_A, int threads) {
    constexpr const char* op = "cayley_of_triangle_gradient";
    const ArrayArg w(W, op, "W"), g(G, op, "G");
    const OptionalArrayArg t(turned, op, "turned");
    const OutputArg out(d_A, op, "d_A");
    check_cayley_of_triangle_gradient(w.view(), t.view(), g.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    cayley_of_triangle_gradient_cpu(w.view(), t.view(), g.view(), out.view(), threads);
  });
  m.def("cayley_of_packed", [](py::handle a, py::handle Q, py::handle W, int threads) {
    constexpr const char* op = "cayley_of_packed";
    const ArrayArg packed(a, op, "a");
    const OutputArg out(Q, op, "Q");
    const OptionalOutputArg saved(W, op, "W");
    check_cayley_of_packed(packed.view(), out.view(), saved.view(), kDevice);
    py::gil_scoped_release unlocked;
    cayley_of_packed_cpu(packed.view(), out.view(), saved.view(), threads);
  });
  m.def("cayley_of_packed_gradient", [](py::handle W, py::handle G, py::handle d_a, int threads) {
    constexpr const char* op = "cayley_of_packed_gradient";
    const ArrayArg w(W, op, "W"), g(G, op, "G");
    const OutputArg out(d_a, op, "d_a");
    check_cayley_of_packed_gradient(w.view(), g.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    cayley_of_packed_gradient_cpu(w.view(), g.view(), out.view(), threads);
  });
}

void bind_skew_expm(py::module_& m) {
  m.def("skew_expm", [](py::handle A, py::handle Q, int threads) {
    constexpr const char* op = "skew_expm";
    const ArrayArg a(A, op, "A");
    const OutputArg out(Q, op, "Q");
    check_skew_expm(a.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    skew_expm_cpu(a.view(), out.view(), threads);
  });
  m.def("skew_expm_gradient", [](py::handle A, py::handle Q, py::handle G, py::handle d_A, int threads) {
    constexpr const char* op = "skew_expm_gradient";
    const ArrayArg a(A, op, "A"), q(Q, op, "Q"), g(G, op, "G");
    const OutputArg out(d_A, op, "d_A");
    check_skew_expm_gradient(a.view(), q.view(), g.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    skew_expm_gradient_cpu(a.view(), q.view(), g.view(), out.view(), threads);
  });
}

void bind_stiefel(py::module_& m) {
  m.def("stiefel_retract", [](py::handle X, py::handle V, py::handle result, int method, bool rows, int threads) {
    constexpr const char* op = "retract";
    const ArrayArg x(X, op, "X"), v(V, op, "V");
    const OutputArg out(result, op, "result");
    check_stiefel_retract(x.view(), v.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    stiefel_retract_cpu(x.view(), v.view(), out.view(), static_cast<Retraction>(method), rows, threads);
  });
  m.def("stiefel_retract_gradient", [](py::handle X, py::handle V, py::handle G, py::handle d_X, py::handle d_V,
                                       int method, bool rows, int threads) {
    constexpr const char* op = "retract";
    const ArrayArg x(X, op, "X"), v(V, op, "V"), g(G, op, "G");
    const OutputArg out_x(d_X, op, "d_X"), out_v(d_V, op, "d_V");
    check_stiefel_retract_gradient(x.view(), v.view(), g.view(), out_x.view(), out_v.view(), kDevice);
    py::gil_scoped_release unlocked;
    stiefel_retract_gradient_cpu(x.view(), v.view(), g.view(), out_x.view(), out_v.view(),
                                 static_cast<Retraction>(method), rows, threads);
  });
  // Lists of equal length; buffers, seconds and largest may be empty.
  m.def("stiefel_step",
        [](const py::list& X, const py::list& gradients, const py::list& buffers, const py::list& seconds,
           const py::list& largest, const std::vector<double>& steps, double lr, double momentum, double share,
           double beta2, double eps, bool nesterov, bool maximize, bool canonical, bool polar, bool rows, int threads) {
          constexpr const char* op = "stiefel_step";
          const StiefelStep step{lr,    momentum,         share, beta2, eps, nesterov, maximize, canonical,
                                 polar, !seconds.empty(), rows};
          std::deque<ArrayArg> kept;  // what the views borrow
          const auto view = [&](const py::list& list, std::size_t i, const char* name) -> const TensorView* {
            if (list.empty()) return nullptr;
            CHECK(list.size() == X.size(), op, ": ", name, ": expected as many arrays as frames");
            return &kept.emplace_back(list[i], op, name).view();
          };
          CHECK(steps.size() == X.size(), op, ": steps: expected as many numbers as frames");
          std::vector<StiefelArrays> arrays;
          for (std::size_t i = 0; i < X.size(); ++i) {
            const TensorView *frame = view(X, i, "X"), *gradient = view(gradients, i, "gradient");
            CHECK(gradient, op, ": gradient: expected as many arrays as frames");
            arrays.push_back({*frame, *gradient, view(buffers, i, "buffer"), view(seconds, i, "second"),
                              view(largest, i, "largest"), steps[i]});
            check_stiefel_step(arrays.back(), step, op, kDevice);
          }
          py::gil_scoped_release unlocked;
          stiefel_step_cpu(arrays, step, threads);
        });
}

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
    const ArrayArg v(V, op, "V"), x(X, op, "X");
    const OutputArg out(result, op, "result");
    const OptionalArrayArg t(tau, op, "tau");
    const OptionalOutputArg w(coefficients, op, "coefficients"), f(factors, op, "factors");
    CHECK(x.view().ndim >= 2, op, ": X: expected a matrix");
    const HouseholderArrays in{v.view(), &x.view(), t.view(), x.view().size(right ? -2 : -1)};
    run_householder(in, out.view(), w.view(), f.view(), {transpose, right, rows}, threads, op);
  });
  m.def("householder_product", [](py::handle V, py::handle tau, py::handle result, py::handle coefficients,
                                  py::handle factors, std::int64_t columns, bool rows, bool lapack, int threads) {
    constexpr const char* op = "householder_product";
    const ArrayArg v(V, op, "V");
    const OutputArg out(result, op, "result");
    const OptionalArrayArg t(tau, op, "tau");
    const OptionalOutputArg w(coefficients, op, "coefficients"), f(factors, op, "factors");
    run_householder({v.view(), nullptr, t.view(), columns}, out.view(), w.view(), f.view(),
                    {false, false, rows, lapack}, threads, op);
  });
  m.def("householder_apply_gradient",
        [](py::handle V, py::handle X, py::handle tau, py::handle coefficients, py::handle factors, py::handle upstream,
           py::handle d_V, py::handle d_X, py::handle d_tau, bool transpose, bool right, bool rows, bool wants_V,
           bool wants_X, bool wants_tau, int threads) {
          constexpr const char* op = "householder_apply";
          const ArrayArg v(V, op, "V"), x(X, op, "X"), w(coefficients, op, "coefficients"), f(factors, op, "factors"),
              g(upstream, op, "upstream");
          const OutputArg dv(d_V, op, "d_V"), dx(d_X, op, "d_X");
          const OptionalArrayArg t(tau, op, "tau");
          const OptionalOutputArg dt(d_tau, op, "d_tau");
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
        g(upstream, op, "upstream");
    const OutputArg dv(d_V, op, "d_V");
    const OptionalArrayArg t(tau, op, "tau");
    const OptionalOutputArg dt(d_tau, op, "d_tau");
    run_householder_gradient({v.view(), nullptr, t.view(), columns}, w.view(), f.view(), g.view(),
                             {wants_V ? &dv.view() : nullptr, nullptr, wants_tau ? dt.view() : nullptr},
                             {false, false, rows, lapack}, threads, op);
  });
}

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
    const ArrayArg g(G, kNewtonSchulz, "G");
    const OutputArg out(result, kNewtonSchulz, "result");
    check_newton_schulz(g.view(), out.view(), kDevice);
    const auto polynomials = polynomials_of(coefficients);
    py::gil_scoped_release unlocked;
    newton_schulz_cpu({g.view()}, {out.view()}, polynomials, 0, threads);
  });
  m.def("newton_schulz_list", [](const py::list& G, const py::list& results, const std::vector<double>& coefficients,
                                 double least_norm, int threads) {
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
    newton_schulz_cpu(inputs, outputs, polynomials, least_norm, threads);
  });
  // Lists of equal length; of every array its rate, what is kept of it, momentum and whether by Nesterov.
  m.def("muon_step", [](const py::list& W, const py::list& gradients, const py::list& buffers,
                        const std::vector<double>& numbers, const std::vector<double>& coefficients, double least_norm,
                        int threads) {
    constexpr const char* op = "Muon";
    CHECK(gradients.size() == W.size() && buffers.size() == W.size() && numbers.size() == 4 * W.size(), op,
          ": W: expected as many arrays in every list");
    std::vector<MuonArrays> arrays;
    std::deque<ArrayArg> kept;  // what the views borrow
    for (std::size_t i = 0; i < W.size(); ++i) {
      const double* own = &numbers[4 * i];
      arrays.push_back({kept.emplace_back(W[i], op, "W").view(), kept.emplace_back(gradients[i], op, "gradient").view(),
                        kept.emplace_back(buffers[i], op, "buffer").view(), own[0], own[1], own[2], own[3] != 0});
      check_muon_step(arrays.back(), kDevice);
    }
    const auto polynomials = polynomials_of(coefficients);
    py::gil_scoped_release unlocked;
    muon_step_cpu(arrays, polynomials, least_norm, threads);
  });
}

void bind_orthonormalize(py::module_& m) {
  m.def("orthonormalize",
        [](py::handle A, py::handle Q, py::handle triangle, py::handle info, bool polar, bool rows, int threads) {
          constexpr const char* op = "orthonormalize";
          const ArrayArg a(A, op, "A");
          const OutputArg q(Q, op, "Q");
          const OptionalOutputArg r(triangle, op, "triangle"), status(info, op, "info");
          check_orthonormalize(a.view(), q.view(), r.view(), status.view(), rows, kDevice);
          py::gil_scoped_release unlocked;
          orthonormalize_cpu(a.view(), q.view(), r.view(), status.view(), polar, rows, threads);
        });
  m.def("orthonormalize_gradient", [](py::handle Q, py::handle triangle, py::handle d_Q, py::handle d_triangle,
                                      py::handle d_A, bool polar, bool rows, int threads) {
    constexpr const char* op = "orthonormalize_gradient";
    const ArrayArg q(Q, op, "Q"), r(triangle, op, "triangle");
    const OutputArg out(d_A, op, "d_A");
    const OptionalArrayArg dq(d_Q, op, "d_Q"), dr(d_triangle, op, "d_triangle");
    check_orthonormalize_gradient(q.view(), r.view(), dq.view(), dr.view(), out.view(), rows, kDevice);
    py::gil_scoped_release unlocked;
    orthonormalize_gradient_cpu(q.view(), r.view(), dq.view(), dr.view(), out.view(), polar, rows, threads);
  });
}

}  // namespace

void bind_orthogonal_cpu(py::module_& m) {
  bind_cayley(m);
  bind_skew_expm(m);
  bind_stiefel(m);
  bind_householder(m);
  bind_newton_schulz(m);
  bind_orthonormalize(m);
}

}  // namespace subspan
