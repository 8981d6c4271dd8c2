#include "core/dispatch.h"
#include "ops/phm/composed_product.h"
#include "ops/phm/direct_product.h"
#include "ops/phm/mixed_product.h"
#include "ops/phm/phm_linear.h"

namespace subspan {
namespace {

// Up to as many rows of mixed components, dot products are faster than tiles of which most lanes are empty.
constexpr index_t kDotRows = 8;

}  // namespace

void phm_linear_cpu(const TensorView& x, const TensorView& A, const TensorView& S, const TensorView* bias,
                    const TensorView& y, PhmMethod method, int threads) {
  dispatch_float(A.dtype, "phm_linear", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t rows = x.size(-2), outputs = A.size(-2) * S.size(-2);
    const bool direct = method == PhmMethod::kAuto ? rows <= kMixedRows : method == PhmMethod::kDirect;
    const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(outputs * x.size(-1));
    for_each_of(batch_count(x, 2), flops, threads, [&](index_t item, int own) {
      Workspace workspace;
      const Factors<T> factors(A, S, item, workspace);
      const Rows<T> in(batch_item(x, 2, item), x.dtype, x.step(-2), x.step(-1));
      T* added = nullptr;
      if (bias) {
        const T* from = static_cast<const T*>(batch_item(*bias, 1, item));
        added = workspace.take<T>(outputs);
        for (index_t o = 0; o < outputs; ++o) added[o] = from[o * bias->step(-1)];
      }
      T* to = y.ptr<T>() + item * rows * outputs;
      if (direct && rows * factors.p <= kDotRows) {
        DirectProduct<T>(factors, rows)(in, added, to, own);
      } else if (direct) {
        MixedProduct<T>(factors, false)(in, rows, added, to, own);
      } else {
        ComposedProduct<T>(factors, false)(in, rows, added, to, own);
      }
    });
  });
}

}  // namespace subspan
