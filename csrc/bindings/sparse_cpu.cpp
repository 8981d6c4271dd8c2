// The family of sparse embeddings. Every function checks its views, releases the GIL and runs.
// Arguments come in the order of the Python registration: inputs, outputs, saved arrays, parameters, threads.
#include "bindings/array_arg.h"
#include "bindings/families.h"
#include "ops/sparse/batch_topk.h"
#include "ops/sparse/flops_loss.h"
#include "ops/sparse/linear_topk.h"
#include "ops/sparse/matching_pursuit.h"
#include "ops/sparse/signed_rows.h"
#include "ops/sparse/sparse_scores.h"
#include "ops/sparse/thresholds.h"
#include "ops/sparse/topk_rows.h"

namespace subspan {
namespace {

constexpr Device kDevice = Device::cpu;

void bind_column_means(py::module_& m) {
  // Several public functions share this kernel; errors name the one that was called.
  for (const char* op : {"flops_loss", "l1_loss", "flops_metric"})
    m.def(
        op, [op](py::handle X, py::handle Y, py::handle row_mask, py::handle running, py::handle loss, py::handle means,
                 py::handle x_factor, py::handle y_factor, int form, double decay, bool counts, int threads) {
          const ArrayArg x(X, op, "x");
          const OptionalArrayArg y(Y, op, "y"), mask(row_mask, op, "row_mask"), before(running, op, "running");
          const OutputArg out(loss, op, "loss");
          const OptionalOutputArg mean(means, op, "means"), fx(x_factor, op, "x_factor"), fy(y_factor, op, "y_factor");
          const FlopsInputs inputs{x.view(), y.view(), mask.view(), before.view()};
          const FlopsOutputs outputs{out.view(), mean.view(), fx.view(), fy.view()};
          const FlopsParameters parameters{static_cast<FlopsForm>(form), decay, counts};
          check_flops_loss(inputs, outputs, parameters.form, kDevice, op);
          py::gil_scoped_release unlocked;
          flops_loss_cpu(inputs, outputs, parameters, threads);
        });
  m.def("signed_rows", [](py::handle X, py::handle factor, py::handle row_mask, py::handle upstream, py::handle out,
                          double slope, int threads) {
    constexpr const char* op = "signed_rows";
    const ArrayArg x(X, op, "x"), f(factor, op, "factor"), g(upstream, op, "upstream");
    const OptionalArrayArg mask(row_mask, op, "row_mask");
    const OutputArg result(out, op, "out");
    check_signed_rows(x.view(), f.view(), mask.view(), g.view(), result.view(), kDevice);
    py::gil_scoped_release unlocked;
    signed_rows_cpu(x.view(), f.view(), mask.view(), g.view(), result.view(), slope, threads);
  });
}

void bind_selections(py::module_& m) {
  m.def("topk_rows",
        [](py::handle X, py::handle values, py::handle indices, index_t k, int by, bool relu, int threads) {
          constexpr const char* op = "topk_rows";
          const ArrayArg x(X, op, "x");
          const OutputArg chosen(values, op, "values");
          const OptionalOutputArg columns(indices, op, "indices");
          const TopkParameters parameters{k, by == 1, relu};
          check_topk_rows(x.view(), chosen.view(), columns.view(), parameters, kDevice);
          py::gil_scoped_release unlocked;
          topk_rows_cpu(x.view(), chosen.view(), columns.view(), parameters, threads);
        });
  m.def("linear_topk", [](py::handle X, py::handle weight, py::handle bias, py::handle values, py::handle indices,
                          index_t k, int by, bool relu, int threads) {
    constexpr const char* op = "linear_topk";
    const ArrayArg x(X, op, "x"), W(weight, op, "W");
    const OptionalArrayArg b(bias, op, "b");
    const OutputArg chosen(values, op, "values");
    const OptionalOutputArg columns(indices, op, "indices");
    const TopkParameters parameters{k, by == 1, relu};
    check_linear_topk(x.view(), W.view(), b.view(), chosen.view(), columns.view(), parameters, kDevice);
    py::gil_scoped_release unlocked;
    linear_topk_cpu(x.view(), W.view(), b.view(), chosen.view(), columns.view(), parameters, threads);
  });
  m.def("batch_topk",
        [](py::handle X, py::handle values, py::handle indices, py::handle counts, index_t k, bool relu, int threads) {
          constexpr const char* op = "batch_topk";
          const ArrayArg x(X, op, "x");
          const OutputArg chosen(values, op, "values");
          const OptionalOutputArg columns(indices, op, "indices"), of_rows(counts, op, "counts");
          check_batch_topk(x.view(), chosen.view(), columns.view(), of_rows.view(), k, kDevice);
          py::gil_scoped_release unlocked;
          batch_topk_cpu(x.view(), chosen.view(), columns.view(), of_rows.view(), k, relu, threads);
        });
}

void bind_thresholds(py::module_& m) {
  m.def("jumprelu", [](py::handle X, py::handle threshold, py::handle out, double, int threads) {
    constexpr const char* op = "jumprelu";
    const ArrayArg x(X, op, "x"), t(threshold, op, "threshold");
    const OutputArg result(out, op, "out");
    check_cut_off(x.view(), t.view(), result.view(), kDevice, op);
    py::gil_scoped_release unlocked;
    cut_off_cpu(x.view(), t.view(), result.view(), ThresholdForm::jump, threads);
  });
  m.def("soft_threshold", [](py::handle X, py::handle threshold, py::handle out, int threads) {
    constexpr const char* op = "soft_threshold";
    const ArrayArg x(X, op, "x"), t(threshold, op, "threshold");
    const OutputArg result(out, op, "out");
    check_cut_off(x.view(), t.view(), result.view(), kDevice, op);
    py::gil_scoped_release unlocked;
    cut_off_cpu(x.view(), t.view(), result.view(), ThresholdForm::soft, threads);
  });
  m.def("jumprelu_gradient", [](py::handle upstream, py::handle X, py::handle threshold, py::handle d_x,
                                py::handle d_threshold, double bandwidth, int threads) {
    constexpr const char* op = "jumprelu";
    const ArrayArg g(upstream, op, "upstream"), x(X, op, "x"), t(threshold, op, "threshold");
    const OutputArg dx(d_x, op, "d_x");
    const OptionalOutputArg dt(d_threshold, op, "d_threshold");
    check_cut_off_gradient(g.view(), x.view(), t.view(), dx.view(), dt.view(), kDevice, op);
    CHECK(bandwidth > 0, op, ": bandwidth: expected a number > 0");
    py::gil_scoped_release unlocked;
    cut_off_gradient_cpu(g.view(), x.view(), t.view(), dx.view(), dt.view(), ThresholdForm::jump, bandwidth, threads);
  });
  m.def("soft_threshold_gradient", [](py::handle upstream, py::handle X, py::handle threshold, py::handle d_x,
                                      py::handle d_threshold, int threads) {
    constexpr const char* op = "soft_threshold";
    const ArrayArg g(upstream, op, "upstream"), x(X, op, "x"), t(threshold, op, "threshold");
    const OutputArg dx(d_x, op, "d_x");
    const OptionalOutputArg dt(d_threshold, op, "d_threshold");
    check_cut_off_gradient(g.view(), x.view(), t.view(), dx.view(), dt.view(), kDevice, op);
    py::gil_scoped_release unlocked;
    cut_off_gradient_cpu(g.view(), x.view(), t.view(), dx.view(), dt.view(), ThresholdForm::soft, 0, threads);
  });
}

// The arrays of one side of a product of sparse rows.
struct SparseArg {
  SparseArg(py::handle values, py::handle indices, py::handle offsets, const char* op, const char* name)
      : values(values, op, name), indices(indices, op, name), offsets(offsets, op, name) {}
  SparseArrays arrays() const { return {values.view(), indices.view(), offsets.view()}; }
  OptionalArrayArg values;
  ArrayArg indices;
  OptionalArrayArg offsets;
};

void bind_sparse_scores(py::module_& m) {
  m.def("sparse_scores",
        [](py::handle q_values, py::handle d_values, py::handle q_indices, py::handle d_indices, py::handle q_offsets,
           py::handle d_offsets, py::handle scores, index_t columns, int threads) {
          constexpr const char* op = "sparse_scores";
          const SparseArg q(q_values, q_indices, q_offsets, op, "Q"), d(d_values, d_indices, d_offsets, op, "D");
          const OutputArg out(scores, op, "scores");
          check_sparse_scores(q.arrays(), d.arrays(), out.view(), columns, kDevice);
          py::gil_scoped_release unlocked;
          sparse_scores_cpu(q.arrays(), d.arrays(), out.view(), columns, threads);
        });
  m.def("scores_on_support",
        [](py::handle upstream, py::handle d_values, py::handle q_indices, py::handle d_indices, py::handle q_offsets,
           py::handle d_offsets, py::handle out, index_t columns, int threads) {
          constexpr const char* op = "sparse_scores";
          const ArrayArg G(upstream, op, "upstream");
          const SparseArg q(py::none(), q_indices, q_offsets, op, "Q"), d(d_values, d_indices, d_offsets, op, "D");
          const OutputArg result(out, op, "out");
          check_scores_on_support(G.view(), d.arrays(), q.arrays(), result.view(), columns, kDevice);
          py::gil_scoped_release unlocked;
          scores_on_support_cpu(G.view(), d.arrays(), q.arrays(), result.view(), columns, threads);
        });
}

void bind_matching_pursuit(py::module_& m) {
  m.def("matching_pursuit", [](py::handle X, py::handle atoms, py::handle values, py::handle residual,
                               py::handle indices, index_t steps, int by, bool relu, int threads) {
    constexpr const char* op = "matching_pursuit";
    const ArrayArg x(X, op, "x"), W(atoms, op, "W");
    const OutputArg v(values, op, "values");
    const OptionalOutputArg r(residual, op, "residual"), chosen(indices, op, "indices");
    const PursuitParameters parameters{steps, by == 1, relu};
    check_matching_pursuit(x.view(), W.view(), v.view(), r.view(), chosen.view(), parameters, kDevice);
    py::gil_scoped_release unlocked;
    matching_pursuit_cpu(x.view(), W.view(), v.view(), r.view(), chosen.view(), parameters, threads);
  });
  m.def("pursuit_values", [](py::handle X, py::handle atoms, py::handle indices, py::handle values, py::handle residual,
                             bool relu, int threads) {
    constexpr const char* op = "matching_pursuit";
    const ArrayArg x(X, op, "x"), W(atoms, op, "W"), chosen(indices, op, "indices");
    const OutputArg v(values, op, "values");
    const OptionalOutputArg r(residual, op, "residual");
    check_pursuit_values(x.view(), W.view(), chosen.view(), v.view(), r.view(), kDevice);
    py::gil_scoped_release unlocked;
    pursuit_values_cpu(x.view(), W.view(), chosen.view(), v.view(), r.view(), relu, threads);
  });
  m.def("pursuit_gradient", [](py::handle X, py::handle atoms, py::handle indices, py::handle g_values,
                               py::handle g_residual, py::handle d_x, py::handle d_W, bool relu, int threads) {
    constexpr const char* op = "matching_pursuit";
    const ArrayArg x(X, op, "x"), W(atoms, op, "W"), chosen(indices, op, "indices");
    const OptionalArrayArg gv(g_values, op, "upstream"), gr(g_residual, op, "upstream");
    const OptionalOutputArg dx(d_x, op, "d_x"), dW(d_W, op, "d_W");
    const PursuitUpstream upstream{gv.view(), gr.view()};
    check_pursuit_gradient(x.view(), W.view(), chosen.view(), upstream, dx.view(), dW.view(), kDevice);
    py::gil_scoped_release unlocked;
    pursuit_gradient_cpu(x.view(), W.view(), chosen.view(), upstream, dx.view(), dW.view(), relu, threads);
  });
}

}  // namespace

void bind_sparse_cpu(py::module_& m) {
  bind_column_means(m);
  bind_selections(m);
  bind_thresholds(m);
  bind_sparse_scores(m);
  bind_matching_pursuit(m);
}

}  // namespace subspan
