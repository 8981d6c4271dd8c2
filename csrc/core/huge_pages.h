// Memory from the system comes in pages of 4 KB that are mapped at their first touch, half a microsecond each: for a
// large fresh array that is more than most kernels need to fill it. Huge pages of 2 MB cost a fifth of that.
#pragma once
#include <cstddef>
#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace subspan {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// A C library may keep smaller blocks, and their pages, after they are freed. glibc does not keep those above 32 MB,
// nor what is free at the end of its memory and more than twice the largest block that was: the results of one or two
// calls. Where pages are kept already, the wish costs a microsecond.
constexpr std::size_t kFreshBytes = std::size_t{4} << 20;

// Asks for huge pages in an array that will be written whole. A wish: where it is not granted, nothing changes.
inline void wish_for_huge_pages(void* data, std::size_t bytes) {
#ifdef __linux__
  const auto first = (reinterpret_cast<std::uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Whether a block of memory has no pages yet, as far as its middle tells. The system is then about to fill them with
// zeros, through the caches, where a kernel's own stores should follow: such that pass the caches by take twice as
// long.
inline bool has_no_pages(const void* data, std::size_t bytes) {
#ifdef __linux__
  constexpr std::uintptr_t page = 4096;
  const std::uintptr_t middle = (reinterpret_cast<std::uintptr_t>(data) + bytes / 2) / page * page;
  unsigned char present = 1;
  return bytes >= 2 * page && mincore(reinterpret_cast<void*>(middle), 1, &present) == 0 && (present & 1) == 0;
#else
  (void)data, (void)bytes;
  return false;
#endif
}

}  // namespace subspan
