#include "core/parallel.h"
#include "core/small_matrix/gram_schmidt.h"
#include "ops/angles/orthonormal_basis.h"

namespace subspan {

void orthonormal_basis_cpu(const TensorView& A, const TensorView& Q, const TensorView* triangle, const TensorView* info,
                           double rank_tol, int threads) {
  dispatch_float(compute_dtype(A.dtype), "orthonormal_basis", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t items = batch_count(A, 2), rows = A.size(-2), count = A.size(-1);
    const double flops = 4.0 * static_cast<double>(items * rows * count) * static_cast<double>(count);
    parallel_for(items, useful_threads(flops, threads), [&](index_t item) {
      Workspace workspace;
      const Columns basis = Columns::take(rows, count, workspace);
      double* upper = workspace.take<double>(count * count);
      read_columns(A, item, std::min(item + 1, items - 1), basis);
      const index_t rank = orthonormalize(basis, rank_tol, upper);
      double poison = 0;
      for (index_t e = 0; e < count * count; ++e) poison += upper[e] * 0;
      write_rows(basis, poison, Q.ptr<T>() + item * rows * count);
      for (index_t e = 0; triangle && e < count * count; ++e)
        triangle->ptr<T>()[item * count * count + e] = static_cast<T>(upper[e] + poison);
      if (info) info->ptr<std::int32_t>()[item] = poison == 0 ? static_cast<std::int32_t>(rank) : -1;
    });
  });
}

}  // namespace subspan
