// OpenMP with an explicit thread count. Kernels are written once, for a team: a team of one works alone on its item, a
// team of all threads shares one large item. Every entry of a result is computed by one member in one fixed order, so
// results are bitwise the same for any number of threads.
#pragma once
#include <omp.h>

#include <algorithm>
#include <exception>

#include "core/simd.h"

namespace subspan {

// After fork, libgomp's workers do not exist in the child and its first parallel region would hang.
bool in_forked_child();

class Team {
 public:
  Team() = default;
  Team(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const { return rank_; }
  int size() const { return size_; }
  void barrier() const {
    if (size_ > 1) {
#pragma omp barrier
    }
  }

 private:
  int rank_ = 0;
  int size_ = 1;
};

// Keeps the first exception thrown in a parallel region, which must not leave the region, and rethrows it after.
class ExceptionRelay {
 public:
  template <class Body>
  void run(Body&& body) noexcept {
    try {
      body();
    } catch (...) {
#pragma omp critical(subspan_exception)
      if (!first_) first_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::exception_ptr first_;
};

// How many of `threads` a piece of work deserves: starting another thread costs some microseconds, in which one does
// about kFlopsPerThread.
constexpr double kFlopsPerThread = 5e5;
inline int useful_threads(double flops, int threads) {
  return static_cast<int>(std::clamp(flops / kFlopsPerThread, 1.0, static_cast<double>(std::max(threads, 1))));
}

// body(item) for every item, items spread over threads, `chunk` at a time; 0: a fair number for items of equal work.
template <class Body>
void parallel_for(index_t items, int threads, Body&& body, index_t chunk = 0) {
  if (in_forked_child()) threads = 1;
  if (threads <= 1 || items <= 1) {
    for (index_t item = 0; item < items; ++item) body(item);
    return;
  }
  ExceptionRelay relay;
  if (chunk == 0) chunk = std::max<index_t>(1, items / (threads * 8));
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads)
  for (index_t item = 0; item < items; ++item) {
    relay.run([&] { body(item); });
  }
  relay.rethrow();
}

// body(team) on all threads together. The body must not throw between barriers: it takes its memory beforehand.
template <class Body>
void parallel_team(int threads, Body&& body) {
  if (threads <= 1 || in_forked_child()) {
    body(Team());
    return;
  }
  ExceptionRelay relay;
#pragma omp parallel num_threads(threads)
  relay.run([&] { body(Team(omp_get_thread_num(), omp_get_num_threads())); });
  relay.rethrow();
}

}  // namespace subspan
