// The family of coding rates. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/coding_rate/class_coding_rates.h"
#include "ops/coding_rate/coding_rate.h"
#include "ops/coding_rate/covariance_contrast.h"
#include "ops/coding_rate/rate_operator.h"
#include "ops/coding_rate/rate_reduction.h"
#include "ops/coding_rate/sinkhorn.h"
#include "ops/coding_rate/soft_class_rates.h"
#include "ops/coding_rate/spd_logdet.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void bind_hard_classes(py::module_& m) {
  m.def("spd_logdet",
        [](py::handle A, py::handle logdet, py::handle info, py::handle inverse, bool implicit_identity, int threads) {
          const ArrayArg a(A, "spd_logdet", "A");
          const OutputArg out(logdet, "spd_logdet", "logdet");
          const OptionalOutputArg inv(inverse, "spd_logdet", "inverse"), status(info, "spd_logdet", "info");
          check_spd_logdet(a.view(), out.view(), inv.view(), status.view(), kDevice);
          py::gil_scoped_release unlocked;
          spd_logdet_cpu(a.view(), out.view(), inv.view(), status.view(), implicit_identity, threads);
        });
  // Two public functions share this kernel; errors name the one that was called.
  for (const char* op : {"coding_rate", "logdet_gram"})
    m.def(op, [op](py::handle Z, py::handle weights, py::handle rate, py::handle info, py::handle d_Z,
                   py::handle d_weights, double alpha, double eps2, double scale, int side, int threads) {
      const ArrayArg z(Z, op, "Z");
      const OutputArg out(rate, op, "rate");
      const OptionalArrayArg w(weights, op, "weights");
      const OptionalOutputArg status(info, op, "info"), dz(d_Z, op, "d_Z"), dw(d_weights, op, "d_weights");
      check_coding_rate(z.view(), w.view(), out.view(), status.view(), dz.view(), dw.view(), kDevice);
      const CodingRateParameters parameters{alpha, eps2, scale, static_cast<Side>(side)};
      py::gil_scoped_release unlocked;
      coding_rate_cpu(z.view(), w.view(), out.view(), status.view(), dz.view(), dw.view(), parameters, threads);
    });
  m.def("class_coding_rates", [](py::handle Z, py::handle labels, py::handle rates, py::handle mass, py::handle d_Z,
                                 double eps2, index_t classes, int threads) {
    const ArrayArg z(Z, "class_coding_rates", "Z"), y(labels, "class_coding_rates", "labels");
    const OutputArg out(rates, "class_coding_rates", "rates"), count(mass, "class_coding_rates", "mass");
    const OptionalOutputArg dz(d_Z, "class_coding_rates", "d_Z");
    check_class_coding_rates(z.view(), y.view(), out.view(), count.view(), dz.view(), classes, kDevice);
    py::gil_scoped_release unlocked;
    class_coding_rates_cpu(z.view(), y.view(), out.view(), count.view(), dz.view(), eps2, classes, threads);
  });
  m.def("rate_reduction", [](py::handle Z, py::handle labels, py::handle delta, py::handle d_Z, double eps2,
                             index_t classes, double gamma, int threads) {
    const ArrayArg z(Z, "rate_reduction", "Z"), y(labels, "rate_reduction", "labels");
    const OutputArg out(delta, "rate_reduction", "delta");
    const OptionalOutputArg dz(d_Z, "rate_reduction", "d_Z");
    check_rate_reduction(z.view(), y.view(), out.view(), dz.view(), kDevice);
    py::gil_scoped_release unlocked;
    rate_reduction_cpu(z.view(), y.view(), out.view(), dz.view(), eps2, classes, gamma, threads);
  });
  m.def("rate_operator", [](py::handle Z, py::handle result, double alpha, int threads) {
    const ArrayArg z(Z, "rate_operator", "Z");
    const OutputArg out(result, "rate_operator", "result");
    check_rate_operator(z.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    rate_operator_cpu(z.view(), out.view(), alpha, threads);
  });
  m.def("sinkhorn", [](py::handle scores, py::handle P, double temperature, index_t iterations, int, int threads) {
    const ArrayArg s(scores, "sinkhorn", "scores");
    const OutputArg out(P, "sinkhorn", "P");
    check_sinkhorn(s.view(), out.view(), temperature, iterations, kDevice);
    py::gil_scoped_release unlocked;
    sinkhorn_cpu(s.view(), out.view(), temperature, iterations, threads);
  });
  m.def("sinkhorn_gradient", [](py::handle scores, py::handle P, py::handle upstream, py::handle d_scores,
                                double temperature, index_t iterations, int grad, int threads) {
    constexpr const char* op = "sinkhorn_gradient";
    const ArrayArg s(scores, op, "scores"), p(P, op, "P"), g(upstream, op, "upstream");
    const OutputArg out(d_scores, op, "d_scores");
    check_sinkhorn_gradient(s.view(), p.view(), g.view(), out.view(), temperature, iterations, kDevice);
    py::gil_scoped_release unlocked;
    sinkhorn_gradient_cpu(s.view(), p.view(), g.view(), out.view(), temperature, iterations, grad == 1, threads);
  });
}

void bind_covariance_contrast(py::module_& m) {
  m.def("covariance_contrast", [](py::handle z, py::handle C, py::handle contrast, py::handle covariance,
                                  py::handle d_z, double beta, bool detach_covariance, int threads) {
    constexpr const char* op = "covariance_contrast";
    const ArrayArg rows(z, op, "z"), previous(C, op, "C");
    const OutputArg out(contrast, op, "contrast");
    const OptionalOutputArg next(covariance, op, "covariance"), dz(d_z, op, "d_z");
    check_covariance_contrast(rows.view(), previous.view(), out.view(), next.view(), dz.view(), kDevice);
    py::gil_scoped_release unlocked;
    covariance_contrast_cpu(rows.view(), previous.view(), out.view(), next.view(), dz.view(), {beta, detach_covariance},
                            threads);
  });
}

void bind_soft_classes(py::module_& m) {
  m.def("class_mass", [](py::handle membership, py::handle mass, int threads) {
    const ArrayArg pi(membership, "class_coding_rates", "labels");
    const OutputArg out(mass, "class_coding_rates", "mass");
    check_class_mass(pi.view(), out.view(), kDevice);
    py::gil_scoped_release unlocked;
    class_mass_cpu(pi.view(), out.view(), threads);
  });
  m.def("soft_class_coding_rates", [](py::handle Z, py::handle membership, py::handle rates, double eps2, int threads) {
    constexpr const char* op = "class_coding_rates";
    const ArrayArg z(Z, op, "Z"), pi(membership, op, "labels");
    const OutputArg out(rates, op, "rates");
    check_soft(z.view(), pi.view(), nullptr, nullptr, kDevice, op);
    check_per_class(out.view(), pi.view(), kDevice, op, "rates");
    py::gil_scoped_release unlocked;
    soft_class_coding_rates_cpu(z.view(), pi.view(), out.view(), eps2, threads);
  });
  m.def("soft_class_gradient", [](py::handle Z, py::handle membership, py::handle upstream, py::handle d_Z,
                                  py::handle d_membership, double eps2, int threads) {
    constexpr const char* op = "class_coding_rates";
    const ArrayArg z(Z, op, "Z"), pi(membership, op, "labels"), g(upstream, op, "upstream");
    const OutputArg dz(d_Z, op, "d_Z"), dpi(d_membership, op, "d_membership");
    check_soft(z.view(), pi.view(), &dz.view(), &dpi.view(), kDevice, op);
    check_upstream(g.view(), pi.view(), kDevice, op);
    py::gil_scoped_release unlocked;
    soft_class_gradient_cpu(z.view(), pi.view(), g.view(), dz.view(), dpi.view(), eps2, threads);
  });
  m.def("soft_rate_reduction", [](py::handle Z, py::handle membership, py::handle delta, py::handle d_Z,
                                  py::handle d_membership, double eps2, double gamma, int threads) {
    constexpr const char* op = "rate_reduction";
    const ArrayArg z(Z, op, "Z"), pi(membership, op, "labels");
    const OutputArg out(delta, op, "delta");
    const OptionalOutputArg dz(d_Z, op, "d_Z"), dpi(d_membership, op, "d_membership");
    check_soft(z.view(), pi.view(), dz.view(), dpi.view(), kDevice, op);
    check_output(out.view(), compute_dtype(z.view().dtype), batch_count(z.view(), 2), kDevice, op, "delta");
    py::gil_scoped_release unlocked;
    soft_rate_reduction_cpu(z.view(), pi.view(), out.view(), dz.view(), dpi.view(), eps2, gamma, threads);
  });
}

}  // namespace

void bind_coding_rate_cpu(py::module_& m) {
  bind_hard_classes(m);
  bind_covariance_contrast(m);
  bind_soft_classes(m);
}

}  // namespace subspan
