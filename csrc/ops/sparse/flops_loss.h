// flops_loss: what is made of the column means m_j = 1/n sum_i |x_ij| of an activation matrix. With u_j = 1/m sum_i
// |y_ij|, or m_j where there is no y:
//   means  L = sum_j m_j u_j                                 dL/dx_ij = u_j sign(x_ij) / n, doubled where u = m
//   pairs  L = sum_j sum_{i != k} |x_ij| |x_kj| / (n (n-1))  dL/dx_ij = 2 sign(x_ij) (sum_k |x_kj| - |x_ij|) / (n
//   (n-1)) l1     L = sum_j m_j                                     dL/dx_ij = sign(x_ij) / n
// means and l1 without y also as a running mean, m'_j = decay running_j + (1 - decay) m_j in the place of m_j; the
// gradient is then divided by 1 - decay. A row that is masked counts as zeros. `counts`: 1 where x_ij is not 0, in the
// place of |x_ij|.
//   x (*batch, n, d), y (*batch, m, d), row_mask (*batch, n) int32, 0: masked, running (*batch, d) of the type computed
//   in, any strides; loss (*batch), means (*batch, d), and the factors of the signs in the gradients, packed.
#pragma once
#include "core/batch.h"
#include "core/check_view.h"

namespace subspan {

enum class FlopsForm : int { means = 0, pairs = 1, l1 = 2 };

struct FlopsParameters {
  FlopsForm form;
  double decay;
  bool counts;
};

struct FlopsInputs {
  const TensorView& x;
  const TensorView* y;
  const TensorView* row_mask;
  const TensorView* running;
};

struct FlopsOutputs {
  const TensorView& loss;
  const TensorView* means;
  const TensorView* x_factor;
  const TensorView* y_factor;
};

inline void check_row_mask(const TensorView& mask, const TensorView& x, Device device, const char* op) {
  check_input(mask, 1, device, op, "row_mask");
  CHECK(mask.dtype == DType::i32 && mask.size(-1) == x.size(-2) && batch_count(mask, 1) == batch_count(x, 2), op,
        ": row_mask: expected an int32 per row of x");
}

inline void check_per_column(const TensorView& array, const TensorView& x, Device device, const char* op,
                             const char* name) {
  check_input(array, 1, device, op, name);
  CHECK(array.dtype == compute_dtype(x.dtype), op, ": ", name, ": expected the type that is computed in");
  CHECK(array.size(-1) == x.size(-1) && batch_count(array, 1) == batch_count(x, 2), op, ": ", name,
        ": expected a number per column of x");
}

inline void check_flops_loss(const FlopsInputs& in, const FlopsOutputs& out, FlopsForm form, Device device,
                             const char* op) {
  check_input(in.x, 2, device, op, "x");
  CHECK(is_float(in.x.dtype), op, ": x: expected a floating point array");
  CHECK(form == FlopsForm::means || form == FlopsForm::pairs || form == FlopsForm::l1, op, ": form: unknown");
  const index_t items = batch_count(in.x, 2), columns = in.x.size(-1);
  if (in.y) {
    check_input(*in.y, 2, device, op, "y");
    CHECK(is_float(in.y->dtype) && compute_dtype(in.y->dtype) == compute_dtype(in.x.dtype), op,
          ": y: expected the type of x");
    CHECK(in.y->size(-1) == columns && batch_count(*in.y, 2) == items, op, ": y: expected the columns of x");
  }
  if (in.row_mask) check_row_mask(*in.row_mask, in.x, device, op);
  if (in.running) check_per_column(*in.running, in.x, device, op, "running");
  const DType compute = compute_dtype(in.x.dtype);
  check_output(out.loss, compute, items, device, op, "loss");
  for (const TensorView* array : {out.means, out.x_factor, out.y_factor}) {
    if (array) check_output(*array, compute, items * columns, device, op, "means");
  }
}

void flops_loss_cpu(const FlopsInputs& in, const FlopsOutputs& out, const FlopsParameters& parameters, int threads);

}  // namespace subspan
