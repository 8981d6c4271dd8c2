#include "ops/sparse/products_by_columns.h"
#include "ops/sparse/products_by_rows.h"
#include "ops/sparse/sparse_t_dense.h"

namespace subspan {

void sparse_t_dense_cpu(const SparseView& S, const TensorView& G, const TensorView& out, int threads) {
  constexpr const char* op = "sparse_t_dense";
  dispatch_float(compute_dtype(out.dtype), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    products_by_columns<T, false>({S, G, nullptr, out, nullptr, SumPlaces::all, 0, op}, threads);
  });
}

void sparse_t_dense_gradient_cpu(const TensorView& U, const SparseView& S, const TensorView& G,
                                 const TensorView& d_values, const TensorView& d_G, int threads) {
  constexpr const char* op = "sparse_t_dense";
  dispatch_float(d_G.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    products_by_rows<T, true, true>({S, U, &G, nullptr, d_G.ptr<T>(), d_values.ptr<T>(), op}, threads);
  });
}

index_t used_columns_cpu(const SparseView& S, const TensorView& columns, int threads) {
  Workspace workspace;
  const RowEntries<float> entries(S, 0, "sparse_decode");
  index_t* counts = workspace.take<index_t>(S.columns);
  count_columns(entries, 1, counts, threads);
  index_t used = 0;
  for (index_t m = 0; m < S.columns; ++m) {
    if (counts[m] > 0) columns.ptr<std::int64_t>()[used++] = m;
  }
  return used;
}

void weight_rows_cpu(const SparseView& S, const TensorView& G, const TensorView* W, const TensorView* d_values,
                     const TensorView& rows, bool added, int threads) {
  constexpr const char* op = "sparse_decode";
  dispatch_float(compute_dtype(rows.dtype), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const SumPlaces places = added ? SumPlaces::added : SumPlaces::used;
    T* products = d_values ? d_values->ptr<T>() : nullptr;
    const ByColumns<T> call{S, G, W, rows, products, places, rows.size(-2), op};
    W ? products_by_columns<T, true>(call, threads) : products_by_columns<T, false>(call, threads);
  });
}

}  // namespace subspan
