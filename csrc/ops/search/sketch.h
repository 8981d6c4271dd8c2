// The sketch of an index: of every document its largest entries, in 8 bits, 3 bytes for each. It tells which documents
// may be among the best at a fraction of the cost of all postings: in text, terms that most documents have are hardly
// ever among a document's largest entries, and they are most of what a search adds. It depends on nothing but what the
// index stores, document by document and, for the scale of a list, window by window of the sketch: it is the same
// whether documents came at once or were added, and after a file was read, which does not have it.
//
// Static pruning by document follows Buettcher and Clarke, A document-centric approach to static index pruning (2006);
// to keep a share of what a document's squares add up to, Bruch et al., Efficient inverted indexes for approximate
// retrieval over learned sparse representations (2024).
#pragma once
#include "ops/search/search_index.h"

namespace subspan {

// A list of a sketch: its first posting, and what a value is multiplied by.
struct SketchList {
  std::uint32_t start;
  float step;
};

// Some consecutive windows of an index.
struct SketchWindow {
  index_t first = 0;  // document
  index_t documents = 0;
  std::vector<DirectoryEntry> directory;
  std::vector<SketchList> lists;  // and one more, which ends the last
  std::vector<std::uint16_t> ids;
  std::vector<std::int8_t> values;
};
using SketchWindows = std::vector<std::shared_ptr<const SketchWindow>>;

class Sketch {
 public:
  Sketch() = default;
  // Of an index whose first `kept` windows are those of another: they are not made again.
  Sketch(const std::shared_ptr<Sketch>& other, std::size_t kept);

  // Made by whoever comes first, from the content that has this sketch; others wait.
  const SketchWindows& windows(const IndexContent& index, int threads);
  // 0 while it is not made.
  std::uint64_t bytes() const;

 private:
  mutable std::mutex mutex_;
  bool made_ = false;
  SketchWindows windows_;
  std::shared_ptr<Sketch> older_;
  std::size_t kept_ = 0;
};

// The documents of largest inner product with the sketch, `candidates` of them for each query, best first, -1 for those
// that are not there. scores: those in the sketch.
SearchCost search_sketch(const SketchWindows& windows, const Queries& queries, const std::vector<TermSummary>& terms,
                         index_t candidates, float* scores, std::int64_t* ids, int threads);

}  // namespace subspan
