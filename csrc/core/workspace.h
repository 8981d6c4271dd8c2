// Scratch memory of a thread. A Workspace takes memory in stack order and gives it back when it goes out of scope; the
// thread keeps one block for the next call, because fresh pages cost more than the arithmetic of a small op: a
// microsecond each. Only pages that were once used are resident.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "core/simd.h"

namespace subspan {

class Workspace {
 public:
  Workspace() : mark_(block().used) {}
  ~Workspace() { block().used = mark_; }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Uninitialised, aligned to a cache line.
  template <class T>
  T* take(index_t count) {
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    Block& kept = block();
    if (kept.used == 0 && bytes > kept.capacity && bytes <= kKept) kept.reserve(kKept);
    if (kept.used + bytes <= kept.capacity) {
      void* memory = kept.memory.get() + kept.used;
      kept.used += bytes;
      return static_cast<T*>(memory);
    }
    overflow_.emplace_back(allocate(bytes));
    return reinterpret_cast<T*>(overflow_.back().get());
  }

 private:
  static constexpr std::size_t kAlign = 64;
  static constexpr std::size_t kKept = std::size_t{16} << 20;
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  using Memory = std::unique_ptr<char, Free>;
  struct Block {
    Memory memory;
    std::size_t capacity = 0;
    std::size_t used = 0;
    void reserve(std::size_t bytes) {
      memory = allocate(bytes);
      capacity = bytes;
    }
  };
  static Memory allocate(std::size_t bytes) {
    void* memory = std::aligned_alloc(kAlign, bytes == 0 ? kAlign : bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return Memory(static_cast<char*>(memory));
  }
  static Block& block() {
    thread_local Block kept;
    return kept;
  }

  std::size_t mark_;
  std::vector<Memory> overflow_;
};

}  // namespace subspan
