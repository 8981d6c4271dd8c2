// Asks for memory before it is read. The hardware follows a stream only within a page of memory, and starts anew where
// a kernel turns from one small matrix to another and back: half the time of reading such matrices is waiting.
#pragma once
#include "core/batch.h"

namespace subspan {

constexpr index_t kLookahead = 4096;  // bytes; half of that is too late on memory that is not cached

class Lookahead {
 public:
  // One matrix that is read in the order of its memory, and after it item `next`.
  Lookahead(const TensorView& array, index_t item, index_t next)
      : begin_(static_cast<const char*>(batch_item(array, 2, item))),
        next_(static_cast<const char*>(batch_item(array, 2, next))) {
    const index_t last = (array.size(-2) - 1) * array.step(-2) + (array.size(-1) - 1) * array.step(-1);
    bytes_ = (last + 1) * element_size(array.dtype);
  }

  // Asks for as many bytes as are about to be read at `at`. Memory that does not exist is not asked for: a prefetch
  // never fails.
  void operator()(const void* at, index_t bytes) const {
    constexpr index_t kLine = 64;
    const index_t offset = static_cast<const char*>(at) - begin_ + kLookahead;
    const char* ahead = offset < bytes_ ? begin_ + offset : next_ + (offset - bytes_);
    for (index_t i = 0; i < bytes; i += kLine) __builtin_prefetch(ahead + i, 0, 3);
  }

 private:
  const char *begin_, *next_;
  index_t bytes_;
};

}  // namespace subspan
