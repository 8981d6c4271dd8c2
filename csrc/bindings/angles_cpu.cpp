// The family of angles. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include <string>

#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/angles/grassmann_exp.h"
#include "ops/angles/grassmann_step.h"
#include "ops/angles/grassmann_transport.h"
#include "ops/angles/orthonormal_basis.h"
#include "ops/angles/pairwise_angles.h"
#include "ops/angles/small_eigh.h"
#include "ops/angles/small_svd.h"
#include "ops/angles/subspace_angles.h"
#include "ops/angles/subspace_logits.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void bind_small_matrices(py::module_& m) {
  // Two public functions share this kernel; errors name the one that was called.
  for (const char* op : {"small_svd", "small_svdvals"})
    m.def(op, [op](py::handle M, py::handle values, py::handle left, py::handle right, py::handle info, int threads) {
      const ArrayArg a(M, op, "M");
      const OutputArg out(values, op, "values");
      const OptionalOutputArg u(left, op, "left"), v(right, op, "right"), status(info, op, "info");
      check_small_svd(a.view(), out.view(), u.view(), v.view(), status.view(), kDevice);
      py::gil_scoped_release unlocked;
      small_svd_cpu(a.view(), out.view(), u.view(), v.view(), status.view(), threads);
    });
  m.def("small_eigh", [](py::handle A, py::handle values, py::handle vectors, py::handle info, int threads) {
    constexpr const char* op = "small_eigh";
    const ArrayArg a(A, op, "A");
    const OutputArg out(values, op, "values");
    const OptionalOutputArg q(vectors, op, "vectors"), status(info, op, "info");
    check_small_eigh(a.view(), out.view(), q.view(), status.view(), kDevice);
    py::gil_scoped_release unlocked;
    small_eigh_cpu(a.view(), out.view(), q.view(), status.view(), threads);
  });
}

void bind_subspace_angles(py::module_& m) {
  // Four public functions share these kernels; errors name the one that was called.
  for (const char* op : {"principal_angles", "principal_cosines", "subspace_distance", "subspace_similarity"}) {
    m.def(op, [op](py::handle A, py::handle B, py::handle values, py::handle info, py::handle left, py::handle right,
                   int function, bool squared, bool padded, bool orthonormal, double rank_tol, int threads) {
      const AngleParameters parameters{static_cast<AngleFunction>(function), squared, padded, orthonormal, rank_tol};
      const ArrayArg a(A, op, "A"), b(B, op, "B");
      const OutputArg out(values, op, "values");
      const OptionalOutputArg status(info, op, "info"), u(left, op, "left"), v(right, op, "right");
      check_subspace_angles(a.view(), b.view(), out.view(), status.view(), u.view(), v.view(), parameters, kDevice);
      py::gil_scoped_release unlocked;
      subspace_angles_cpu(a.view(), b.view(), out.view(), status.view(), u.view(), v.view(), parameters, threads);
    });
    m.def((std::string("pairwise_") + op).c_str(), [op](py::handle A, py::handle B, py::handle values, py::handle info,
                                                        int function, bool squared, bool padded, int threads) {
      const AngleParameters parameters{static_cast<AngleFunction>(function), squared, padded, true, 0};
      const ArrayArg a(A, op, "A"), b(B, op, "B");
      const OutputArg out(values, op, "values");
      const OptionalOutputArg status(info, op, "info");
      check_pairwise_angles(a.view(), b.view(), out.view(), status.view(), parameters, kDevice);
      py::gil_scoped_release unlocked;
      pairwise_angles_cpu(a.view(), b.view(), out.view(), status.view(), parameters, threads);
    });
  }
  m.def("orthonormal_basis",
        [](py::handle A, py::handle Q, py::handle triangle, py::handle info, double rank_tol, int threads) {
          constexpr const char* op = "principal_angles";  // the public function that hands its arrays on
          const ArrayArg a(A, op, "A");
          const OutputArg q(Q, op, "Q");
          const OptionalOutputArg r(triangle, op, "triangle"), status(info, op, "info");
          check_orthonormal_basis(a.view(), q.view(), r.view(), status.view(), kDevice);
          py::gil_scoped_release unlocked;
          orthonormal_basis_cpu(a.view(), q.view(), r.view(), status.view(), rank_tol, threads);
        });
  m.def("pairwise_angles_gradient", [](py::handle A, py::handle B, py::handle upstream, py::handle phi, int function,
                                       bool squared, bool padded, int threads) {
    constexpr const char* op = "pairwise_angles_gradient";
    const AngleParameters parameters{static_cast<AngleFunction>(function), squared, padded, true, 0};
    const ArrayArg a(A, op, "A"), b(B, op, "B"), g(upstream, op, "upstream");
    const OutputArg out(phi, op, "phi");
    check_pairwise_angles_gradient(a.view(), b.view(), g.view(), out.view(), parameters, kDevice);
    py::gil_scoped_release unlocked;
    pairwise_angles_gradient_cpu(a.view(), b.view(), g.view(), out.view(), parameters, threads);
  });
  m.def("subspace_angles_gradient", [](py::handle A, py::handle B, py::handle upstream, py::handle d_A, py::handle d_B,
                                       int function, bool squared, bool padded, bool orthonormal, double rank_tol,
                                       int threads) {
    constexpr const char* op = "subspace_angles_gradient";
    const AngleParameters parameters{static_cast<AngleFunction>(function), squared, padded, orthonormal, rank_tol};
    const ArrayArg a(A, op, "A"), b(B, op, "B"), g(upstream, op, "upstream");
    const OutputArg da(d_A, op, "d_A"), db(d_B, op, "d_B");
    check_subspace_angles_gradient(a.view(), b.view(), g.view(), da.view(), db.view(), parameters, kDevice);
    py::gil_scoped_release unlocked;
    subspace_angles_gradient_cpu(a.view(), b.view(), g.view(), da.view(), db.view(), parameters, threads);
  });
  m.def("subspace_logits", [](py::handle x, py::handle W, py::handle logits, py::handle projections, double scale,
                              bool normalize, int threads) {
    constexpr const char* op = "subspace_logits";
    const ArrayArg rows(x, op, "x"), bases(W, op, "W");
    const OutputArg out(logits, op, "logits");
    const OptionalOutputArg z(projections, op, "projections");
    check_subspace_logits(rows.view(), bases.view(), out.view(), z.view(), kDevice);
    py::gil_scoped_release unlocked;
    subspace_logits_cpu(rows.view(), bases.view(), out.view(), z.view(), {scale, normalize}, threads);
  });
  m.def("subspace_logits_gradient", [](py::handle x, py::handle W, py::handle projections, py::handle upstream,
                                       py::handle d_x, py::handle d_W, double scale, bool normalize, bool columns,
                                       bool wants_x, bool wants_W, int threads) {
    constexpr const char* op = "subspace_logits";
    const ArrayArg rows(x, op, "x"), bases(W, op, "W"), z(projections, op, "projections"), g(upstream, op, "upstream");
    const OutputArg dx(d_x, op, "d_x"), dw(d_W, op, "d_W");
    const SubspaceGradientParameters parameters{{scale, normalize}, columns, wants_x, wants_W};
    check_subspace_logits_gradient(rows.view(), bases.view(), z.view(), g.view(), dx.view(), dw.view(), parameters,
                                   kDevice);
    py::gil_scoped_release unlocked;
    subspace_logits_gradient_cpu(rows.view(), bases.view(), z.view(), g.view(), dx.view(), dw.view(), parameters,
                                 threads);
  });
}

void bind_grassmann(py::module_& m) {
  m.def("grassmann_exp", [](py::handle X, py::handle D, py::handle result, bool project, bool rows, int threads) {
    constexpr const char* op = "grassmann_exp";
    const ArrayArg x(X, op, "X"), d(D, op, "D");
    const OutputArg out(result, op, "result");
    check_grassmann_exp(x.view(), d.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    grassmann_exp_cpu(x.view(), d.view(), out.view(), project, rows, threads);
  });
  m.def("grassmann_step", [](py::handle P, py::handle gradient, py::handle buffer, double lr, double momentum,
                             double dampening, double weight_decay, bool nesterov, bool maximize, bool transport,
                             bool orthonormalize, bool rows, int threads) {
    constexpr const char* op = "GrassmannSGD";
    const ArrayArg p(P, op, "P"), g(gradient, op, "gradient");
    const OptionalArrayArg b(buffer, op, "buffer");
    check_grassmann_step(p.view(), g.view(), b.view(), kDevice);
    const StepParameters parameters{lr,       momentum, dampening, weight_decay,
                                    nesterov, maximize, transport, orthonormalize};
    py::gil_scoped_release unlocked;
    grassmann_step_cpu(p.view(), g.view(), b.view(), parameters, rows, threads);
  });
  m.def("grassmann_transport", [](py::handle X, py::handle D, py::handle V, py::handle result, bool rows, int threads) {
    constexpr const char* op = "grassmann_transport";
    const ArrayArg x(X, op, "X"), d(D, op, "D"), v(V, op, "V");
    const OutputArg out(result, op, "result");
    check_grassmann_transport(x.view(), d.view(), v.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    grassmann_transport_cpu(x.view(), d.view(), v.view(), out.view(), rows, threads);
  });
}

}  // namespace

void bind_angles_cpu(py::module_& m) {
  bind_small_matrices(m);
  bind_subspace_angles(m);
  bind_grassmann(m);
}

}  // namespace subspan
