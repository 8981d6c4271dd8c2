// How a tall matrix is shared by a team: in chunks of its length that depend on nothing but the length, so that sums
// over chunks are the same for any number of threads.
#pragma once
#include <vector>

#include "ops/angles/long_vectors.h"

namespace subspan {

class Chunks {
 public:
  explicit Chunks(index_t length)
      : length_(length),
        size_(std::max(kChunkLength, round_up((length + kMost - 1) / kMost, kBlockLength))),
        count_(std::max<index_t>(1, (length + size_ - 1) / size_)) {}

  index_t count() const { return count_; }

  // body(chunk, first, size) for the blocks of the chunks of this member.
  template <class Body>
  void each_block(Team team, Body&& body) const {
    for (index_t chunk = team.rank(); chunk < count_; chunk += team.size()) {
      const index_t end = std::min(length_, (chunk + 1) * size_);
      for (index_t first = chunk * size_; first < end; first += kBlockLength) {
        body(chunk, first, std::min(kBlockLength, end - first));
      }
    }
  }

 private:
  static constexpr index_t kMost = 16;  // each needs its own sums
  index_t length_, size_, count_;
};

// A matrix of dot products that is summed up chunk by chunk.
class DotSums {
 public:
  DotSums(index_t size, const Chunks& chunks, Workspace& workspace) {
    for (index_t chunk = 0; chunk < chunks.count(); ++chunk) parts_.push_back(Square::take(size, workspace));
  }
  const Square& part(index_t chunk) const { return parts_[static_cast<std::size_t>(chunk)]; }
  // The sum over the chunks, in their order. To be called once, when all are complete.
  const Square& total(bool symmetric) const {
    for (std::size_t chunk = 1; chunk < parts_.size(); ++chunk) add_scaled(parts_[0], 1, parts_[chunk]);
    if (symmetric) complete_symmetric(parts_[0]);
    return parts_[0];
  }

 private:
  std::vector<Square> parts_;
};

// run(item, team size) for every item: one thread for each where there are enough of them, else teams.
template <class Run>
void run_tall_items(index_t items, double flops, int threads, Run&& run) {
  if (items >= threads) {
    const int used = useful_threads(static_cast<double>(items) * flops, threads);
    parallel_for(items, used, [&](index_t item) { run(item, 1); });
  } else {
    for (index_t item = 0; item < items; ++item) run(item, useful_threads(flops / 4, threads));
  }
}

}  // namespace subspan
