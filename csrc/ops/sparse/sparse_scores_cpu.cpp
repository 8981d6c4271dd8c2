#include "core/dispatch.h"
#include "core/stream.h"
#include "ops/sparse/postings.h"
#include "ops/sparse/sparse_scores.h"

namespace subspan {
namespace {

constexpr index_t kBlockRows = 16;  // queries of a task
// Results that are larger than caches are written past them.
constexpr std::size_t kStreamedBytes = std::size_t{32} << 20;

// The scores of one query with the documents of one window: Gustavson's product by postings.
template <class T>
void score(const SparseOperand& q, const Postings<T>& d, index_t query, index_t window, T* scores) {
  std::fill_n(scores, d.size_of(window), T(0));
  const SparseOperand::Row row = q.row(query);
  for_lists(q, row, d, window, [&](index_t e, const typename Postings<T>::List& list) {
    const T value = q.value<T>(row, e);
    for (index_t i = 0; i < list.count; ++i) scores[list.rows[i]] += value * list.values[i];
  });
}

template <class T>
void stream_row(const T* from, T* to, index_t count) {
  index_t i = std::min(count, entries_to_alignment(to));
  std::copy_n(from, i, to);
  for (; i + kLanes<T> <= count; i += kLanes<T>) stream(to + i, load(from + i));
  std::copy(from + i, from + count, to + i);
}

template <class T>
void score_item(const SparseOperand& q, const SparseOperand& d, index_t columns, T* scores, int threads) {
  Workspace workspace;
  const Postings<T> postings(d, columns, threads, workspace);
  const index_t blocks = (q.rows() + kBlockRows - 1) / kBlockRows;
  const bool streams = static_cast<std::size_t>(q.rows() * d.rows()) * sizeof(T) >= kStreamedBytes;
  parallel_for(postings.windows() * blocks, threads, [&](index_t task) {
    const index_t window = task / blocks, first = task % blocks * kBlockRows;
    T sums[kWindowRows];
    for (index_t query = first; query < std::min(q.rows(), first + kBlockRows); ++query) {
      T* to = scores + query * d.rows() + postings.begin_of(window);
      score(q, postings, query, window, streams ? sums : to);
      if (streams) stream_row(sums, to, postings.size_of(window));
    }
    if (streams) end_stream();
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
