#include "core/dispatch.h"
#include "ops/sparse/postings.h"
#include "ops/sparse/sparse_scores.h"

namespace subspan {
namespace {

constexpr index_t kBlockRows = 16;  // queries of a task

// Gustavson's product by postings: the scores of a query with a window of documents are summed where they are written.
template <class T>
void score(const SparseOperand& q, const Postings<T>& d, index_t query, index_t window, T* scores) {
  std::fill_n(scores, d.size_of(window), T(0));
  const SparseOperand::Row row = q.row(query);
  for (index_t e = 0; e < row.count; ++e) {
    const typename Postings<T>::List list = d.list(window, d.slot(q.column(row, e)));
    const T value = q.value<T>(row, e);
    for (index_t i = 0; i < list.count; ++i) scores[list.rows[i]] += value * list.values[i];
  }
}

template <class T>
void score_item(const SparseOperand& q, const SparseOperand& d, index_t columns, T* scores, int threads) {
  Workspace workspace;
  const Postings<T> postings(d, columns, threads, workspace);
  const index_t blocks = (q.rows() + kBlockRows - 1) / kBlockRows;
  parallel_for(postings.windows() * blocks, threads, [&](index_t task) {
    const index_t window = task / blocks, first = task % blocks * kBlockRows;
    for (index_t query = first; query < std::min(q.rows(), first + kBlockRows); ++query) {
      score(q, postings, query, window, scores + query * d.rows() + postings.begin_of(window));
    }
  });
}

}  // namespace

void sparse_scores_cpu(const SparseArrays& queries, const SparseArrays& documents, const TensorView& scores,
                       index_t columns, int threads) {
  dispatch_float(scores.dtype, "sparse_scores", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const index_t size = queries.rows() * documents.rows();
    for_each_sparse_item(queries, documents, threads, [&](index_t item, int used) {
      const SparseOperand q(queries, item, columns, "sparse_scores", "Q");
      const SparseOperand d(documents, item, columns, "sparse_scores", "D");
      score_item(q, d, columns, scores.ptr<T>() + item * size, used);
    });
  });
}

}  // namespace subspan
