#include "ops/sparse/products_by_rows.h"
#include "ops/sparse/sddmm.h"

namespace subspan {

void sddmm_cpu(const TensorView& G, const TensorView& W, const SparseView& S, const TensorView& out, int threads) {
  constexpr const char* op = "sddmm";
  dispatch_float(out.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    products_by_rows<T, false, true>({S, W, &G, nullptr, nullptr, out.ptr<T>(), op}, threads);
  });
}

}  // namespace subspan
