#include "core/workspace.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

namespace subspan {

void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#ifdef __linux__
  constexpr std::uintptr_t page = 4096;
  constexpr std::size_t worth = std::size_t{2} << 20;  // one huge page
  if (bytes < worth) return;
  const std::uintptr_t begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
}

}  // namespace subspan
