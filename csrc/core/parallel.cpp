#include "core/parallel.h"

#include <pthread.h>

#include <atomic>

namespace subspan {
namespace {
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
}  // namespace

bool in_forked_child() {
  (void)registered;
  return forked.load(std::memory_order_relaxed);
}
}  // namespace subspan
