// Runs __global__ kernels on the host, for tests: the kernel source is compiled by the host compiler, one fiber stands
// for one device thread, blocks run one after another.
//   - Between two block barriers one warp after another, in a random order, runs as far ahead as it can; between two
//   warp
//     operations its lanes run in a random order. So a missing barrier shows as a wrong result for some of a few seeds.
//     Blocks run in a random order too.
//   - Shared memory starts as NaN and is exactly as large as the launch asked for: AddressSanitizer sees what lies
//   beyond.
//   - Threads that wait for each other at different points, or for one that has returned, end in emulator::Deadlock.
// Not covered: weak memory order, inline PTX, asynchronous copies, tensor cores, and of course speed.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

namespace subspan::emulator {

struct Deadlock : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index {
  unsigned x = 0;
};

}  // namespace subspan::emulator

// Set before a fiber is resumed; per OS thread, because two Python threads may launch at once.
inline thread_local subspan::emulator::Index threadIdx, blockIdx;

namespace subspan::emulator {

inline std::atomic<unsigned> seed{1};

// What the scheduler itself, and each emulated thread, is: a stack to switch to.
struct Fiber {
  enum class State { ready, at_block_barrier, at_warp_operation, returned };

  ucontext_t context{};
  State state = State::ready;
  unsigned thread = 0;
  // The warp operation it waits in: the lanes that take part, its own value, and the lane whose value it receives.
  unsigned mask = 0, source_lane = 0;
  std::uint64_t sent = 0, received = 0;
  // For AddressSanitizer, which has to be told of every change of stack.
  const void* stack_bottom = nullptr;
  std::size_t stack_size = 0;
  void* fake_stack = nullptr;
};

inline void switch_fiber(Fiber& from, Fiber& to, [[maybe_unused]] bool from_ends = false) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_size);
#endif
  threadIdx.x = to.thread;
  swapcontext(&from.context, &to.context);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

class Block;
inline thread_local Block* running = nullptr;  // the block this OS thread is emulating

class Block {
 public:
  Block(const std::function<void()>& body, int threads, std::size_t shared_bytes, std::mt19937& random)
      : body_(body), shared_bytes_(shared_bytes), random_(random), fibers_(threads), warps_(threads / 32) {
    // Left uninitialised, so that only the pages a fiber touches exist.
    stacks_.reset(new char[kStackBytes * fibers_.size()]);
    for (std::size_t warp = 0; warp < warps_.size(); ++warp) {
      warps_[warp].lanes = &fibers_[32 * warp];
      std::iota(warps_[warp].order, warps_[warp].order + 32, 0);
    }
  }

  void run(unsigned block) {
    blockIdx.x = block;
    shared_.reset(static_cast<char*>(::operator new(shared_bytes_, std::align_val_t(kSharedAlignment))));
    std::memset(shared_.get(), 0xff, shared_bytes_);  // NaN in every floating-point type
    for (unsigned thread = 0; thread < fibers_.size(); ++thread) start(fibers_[thread], thread);
    for (Warp& warp : warps_) warp.draw_order(random_);
    draw_warp_order();
    running = this;
    switch_fiber(scheduler_, next_fiber());
    running = nullptr;
    if (error_) std::rethrow_exception(error_);
  }

  void* shared() const { return shared_.get(); }

  void wait_at_block_barrier() { leave(Fiber::State::at_block_barrier); }

  // Waits for every lane in `mask`; returns what `source_lane` sent.
  std::uint64_t warp_operation(unsigned mask, std::uint64_t sent, unsigned source_lane) {
    Fiber& self = current();
    const unsigned lane = self.thread % 32;
    if (!(mask >> lane & 1)) throw std::logic_error("emulator: a lane is not in the mask of its own warp operation");
    if (!(mask >> source_lane & 1)) throw std::logic_error("emulator: shuffle from a lane outside the mask");
    self.mask = mask;
    self.sent = sent;
    self.source_lane = source_lane;
    leave(Fiber::State::at_warp_operation);
    return self.received;
  }

 private:
  static constexpr std::size_t kStackBytes = 128 * 1024;
  static constexpr std::size_t kSharedAlignment = 128;

  struct FreeShared {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t(kSharedAlignment)); }
  };

  Fiber& current() { return fibers_[threadIdx.x]; }

  void start(Fiber& fiber, unsigned thread) {
    fiber = Fiber();
    fiber.thread = thread;
    fiber.stack_bottom = stacks_.get() + kStackBytes * thread;
    fiber.stack_size = kStackBytes;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = const_cast<void*>(fiber.stack_bottom);
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }

  static void enter() {
    Block& block = *running;
#ifdef __SANITIZE_ADDRESS__
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!block.scheduler_.stack_bottom) {  // the first fiber to run comes from the scheduler
      block.scheduler_.stack_bottom = bottom;
      block.scheduler_.stack_size = size;
    }
#endif
    try {
      block.body_();
    } catch (...) {
      block.error_ = std::current_exception();  // must not unwind past this stack
    }
    Fiber& self = block.current();
    self.state = Fiber::State::returned;
    switch_fiber(self, block.next_fiber(), true);
  }

  void leave(Fiber::State state) {
    Fiber& self = current();
    self.state = state;
    Fiber& next = next_fiber();
    if (&next != &self) switch_fiber(self, next);
  }

  struct Warp {
    Fiber* lanes;
    int order[32];  // in which its lanes run until the next warp operation
    int position = 0;

    void draw_order(std::mt19937& random) {
      std::shuffle(order, order + 32, random);
      position = 0;
    }

    // The next lane that can run, after completing a warp operation if need be; null where all have returned or wait.
    Fiber* next(std::mt19937& random) {
      do {
        while (position < 32) {
          Fiber& fiber = lanes[order[position++]];
          if (fiber.state == Fiber::State::ready) return &fiber;
        }
        draw_order(random);
      } while (complete_operations());
      return nullptr;
    }

    // Lets go the sets of lanes that wait for exactly each other, handing over what they sent.
    bool complete_operations() {
      bool any = false;
      for (int lane = 0; lane < 32; ++lane) {
        if (lanes[lane].state != Fiber::State::at_warp_operation) continue;
        const unsigned mask = lanes[lane].mask;
        const auto in_mask = [=](int other) { return (mask >> other & 1) != 0; };
        bool complete = true;
        for (int other = 0; other < 32; ++other) {
          const bool agrees = lanes[other].state == Fiber::State::at_warp_operation && lanes[other].mask == mask;
          complete = complete && (agrees || !in_mask(other));
        }
        if (!complete) continue;
        for (int other = 0; other < 32; ++other) {
          if (!in_mask(other)) continue;
          lanes[other].received = lanes[lanes[other].source_lane].sent;
          lanes[other].state = Fiber::State::ready;
        }
        any = true;
      }
      return any;
    }
  };

  // The next fiber to run: of the current warp as long as it has one, then of the next. When all wait at the block
  // barrier, it opens. The scheduler's own stack, when nothing is left to run.
  Fiber& next_fiber() {
    while (!error_) {
      for (; current_warp_ < warps_.size(); ++current_warp_) {
        if (Fiber* fiber = warps_[current_warp_].next(random_)) return *fiber;
      }
      const auto waiting = count(Fiber::State::at_block_barrier), returned = count(Fiber::State::returned);
      if (returned == fibers_.size()) break;
      if (waiting == fibers_.size()) {
        for (Fiber& fiber : fibers_) fiber.state = Fiber::State::ready;
        draw_warp_order();
      } else {
        error_ = std::make_exception_ptr(
            Deadlock("emulator: block " + std::to_string(blockIdx.x) + " cannot go on: of " +
                     std::to_string(fibers_.size()) + " threads " + std::to_string(waiting) +
                     " wait at __syncthreads, " + std::to_string(count(Fiber::State::at_warp_operation)) +
                     " in a warp operation, " + std::to_string(returned) + " have returned"));
      }
    }
    return scheduler_;
  }

  std::size_t count(Fiber::State state) const {
    return std::count_if(fibers_.begin(), fibers_.end(), [=](const Fiber& fiber) { return fiber.state == state; });
  }

  void draw_warp_order() {
    std::shuffle(warps_.begin(), warps_.end(), random_);
    current_warp_ = 0;
  }

  const std::function<void()>& body_;
  std::size_t shared_bytes_;
  std::mt19937& random_;
  std::vector<Fiber> fibers_;
  std::unique_ptr<char[]> stacks_;
  std::unique_ptr<char, FreeShared> shared_;
  Fiber scheduler_;
  std::vector<Warp> warps_;
  std::size_t current_warp_ = 0;
  std::exception_ptr error_;
};

inline void* shared_memory() { return running->shared(); }

inline void run_grid(const std::function<void()>& body, unsigned blocks, int threads, std::size_t shared_bytes) {
  if (threads <= 0 || threads % 32 != 0) throw std::logic_error("emulator: a block must be a whole number of warps");
  std::mt19937 random(seed.load());
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  Block block(body, threads, shared_bytes, random);
  for (unsigned index : order) block.run(index);
}

template <class T>
T exchange(unsigned mask, T value, unsigned source_lane) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t sent = 0;
  std::memcpy(&sent, &value, sizeof(T));
  const std::uint64_t received = running->warp_operation(mask, sent, source_lane);
  std::memcpy(&value, &received, sizeof(T));
  return value;
}

}  // namespace subspan::emulator

inline void __syncthreads() { subspan::emulator::running->wait_at_block_barrier(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) { subspan::emulator::exchange(mask, 0, threadIdx.x % 32); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned group = threadIdx.x % 32 / width * width;
  return subspan::emulator::exchange(mask, value, group + static_cast<unsigned>(source) % width);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return subspan::emulator::exchange(mask, value, threadIdx.x % 32 ^ lane_mask);
}

// Of all lanes of a warp only.
inline int __any_sync(unsigned mask, bool predicate) {
  int any = predicate;
  for (int step = 16; step > 0; step /= 2) any |= subspan::emulator::exchange(mask, any, threadIdx.x % 32 ^ step);
  return any;
}
