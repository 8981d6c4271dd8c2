#include "ops/sparse/products_by_columns.h"
#include "ops/sparse/products_by_rows.h"
#include "ops/sparse/sparse_decode.h"

namespace subspan {

void sparse_decode_cpu(const SparseView& S, const TensorView& W, const TensorView* bias, const TensorView& out,
                       int threads) {
  constexpr const char* op = "sparse_decode";
  dispatch_float(out.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    products_by_rows<T, true, false>({S, W, nullptr, bias, out.ptr<T>(), nullptr, op}, threads);
  });
}

// By columns, which reads each row of W and writes each of d_W once, in order; the rows of G, of which there are fewer,
// are gathered for both.
void sparse_decode_gradient_cpu(const TensorView& G, const SparseView& S, const TensorView& W,
                                const TensorView& d_values, const TensorView& d_W, int threads) {
  constexpr const char* op = "sparse_decode";
  dispatch_float(d_values.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    products_by_columns<T, true>({S, G, &W, d_W, d_values.ptr<T>(), SumPlaces::all, 0, op}, threads);
  });
}

}  // namespace subspan
