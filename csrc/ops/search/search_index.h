// An index of sparse documents for inner products with sparse queries: the k documents of largest
//
//   score(q, d) = sum over the entries (j, q_j) of the query, in their order, of q_j d_j,
//
// each step of the sum rounded to float32, largest first, equal scores by lower number first. Signs are free; a
// document without a common term has the score 0 like any other. What a score is does not depend on the documents
// around it, on the number of threads, on how queries are batched, or on whether documents came at once or were added.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ops/search/index_window.h"

namespace subspan {

// CSR as the caller holds it. Checked as it is read, entry by entry: it may change meanwhile.
struct SparseRowsView {
  const std::int64_t* offsets = nullptr;  // rows + 1
  const void* columns_of = nullptr;       // int32 or int64
  const void* values = nullptr;           // float32 or float64
  DType index_type = DType::i32;
  DType value_type = DType::f32;
  index_t rows = 0;
  index_t entries = 0;
  index_t first = 0;  // what errors call the first row
  const char* op = "";
  const char* name = "";
};

struct IndexSettings {
  index_t columns = 0;
  ValueType values = ValueType::f32;
  index_t window = 8192;      // documents; multiples of 64
  double bitmap_share = 0.2;  // lists of at least this share of a window's documents are bitmaps
};

// What the whole index knows of a column: how many documents have it, and bounds of its values that contain 0.
struct TermSummary {
  std::uint64_t count = 0;
  float low = 0;
  float high = 0;
};
static_assert(sizeof(TermSummary) == 16, "the layout of a file");

// What is left to be verified of a window that comes from a file.
class WindowCheck {
 public:
  WindowCheck(index_t columns, std::uint32_t checksum, const char* op)
      : columns_(columns), checksum_(checksum), op_(op) {}
  // Throws where the window is not what was saved. Several threads may find that out at once.
  void run(const WindowView& window);

 private:
  index_t columns_;
  std::uint32_t checksum_;
  std::string op_;
  std::atomic<bool> done_{false};
};

struct Window {
  std::shared_ptr<const char> memory;
  WindowView view;
  index_t first = 0;  // document
  std::shared_ptr<WindowCheck> check = nullptr;

  // The view, to be read beyond its header.
  const WindowView& verified() const {
    if (check != nullptr) check->run(view);
    return view;
  }
};

class Sketch;
class Queries;

// Never changed once it is made: searches hold the content that they began with.
struct IndexContent {
  IndexSettings settings;
  index_t documents = 0;
  std::uint64_t postings = 0;
  std::uint64_t bytes = 0;
  float largest_scale = 0;  // of the documents of a u8 index
  std::vector<Window> windows;
  std::shared_ptr<const std::vector<TermSummary>> terms;
  std::shared_ptr<Sketch> sketch;  // which the first approximate search makes
};

// The content with more documents at its end, bitwise what building all of them at once gives.
std::shared_ptr<const IndexContent> with_documents(const IndexContent& before, const SparseRowsView& rows, int threads);

struct SearchOutput {
  float* scores;        // (queries, k)
  std::int64_t* ids;    // (queries, k)
  double* error_bound;  // (queries): no score is farther from that of the original values
  index_t k;            // at most the number of documents
};

struct SearchCost {
  std::uint64_t predicted = 0;  // sum over columns of documents with it times queries with it
  std::uint64_t postings = 0;   // that were multiplied and added
  std::uint64_t windows = 0;    // that had any
  std::uint64_t looked_up = 0;  // documents that were scored one by one

  void operator+=(const SearchCost& other) {
    predicted += other.predicted;
    postings += other.postings;
    windows += other.windows;
    looked_up += other.looked_up;
  }
};

SearchCost search(const IndexContent& index, const SparseRowsView& queries, const SearchOutput& out, int threads);

// The best of this many candidates, those of largest inner product with a sketch of the index, by their scores in the
// index, the same bits as in an exact search. With as many candidates as an eighth of the documents it is one.
SearchCost search_approximately(const IndexContent& index, const SparseRowsView& queries, index_t candidates,
                                const SearchOutput& out, int threads);

// scores[i, j] of query i and row ids[i, j], of `per_query` for each query, as an index of the rows in float32 gives
// it.
void score_rows(const SparseRowsView& queries, const SparseRowsView& rows, index_t columns, const std::int64_t* ids,
                index_t per_query, float* scores, int threads);

class SearchIndex {
 public:
  explicit SearchIndex(const IndexSettings& settings);
  explicit SearchIndex(std::shared_ptr<const IndexContent> content) : content_(std::move(content)) {}

  std::shared_ptr<const IndexContent> content() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return content_;
  }
  void replace(std::shared_ptr<const IndexContent> content) {
    const std::lock_guard<std::mutex> lock(mutex_);
    content_.swap(content);
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const IndexContent> content_;
};

}  // namespace subspan
