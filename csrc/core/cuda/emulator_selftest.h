// Kernels with one planted flaw each, to test that the emulator sees it. Test-only.
#pragma once
#include <string>

#include "core/check.h"
#include "core/cuda/launch.cuh"

namespace subspan::emulator {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

constexpr int kSelftestThreads = 64;

// Every thread passes its index through shared memory to its mirror image in the block.
inline __global__ void block_barrier_kernel(float* out, bool flawed) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x] = threadIdx.x;
  if (!flawed) __syncthreads();
  out[threadIdx.x] = shared[kSelftestThreads - 1 - threadIdx.x];
}

// The same between the lanes of each warp; the warps then trade places.
inline __global__ void warp_barrier_kernel(float* out, bool flawed) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x] = threadIdx.x;
  if (!flawed) __syncwarp();
  const unsigned mirrored = threadIdx.x ^ (kWarp - 1);
  out[kSelftestThreads - 1 - mirrored] = shared[mirrored];
}

// Shared memory written again while another warp may still read it. The shuffle in between makes every warp wait for
// itself, so a scheduler that gave all warps their turn would hide the flaw.
inline __global__ void reused_memory_kernel(float* out, bool flawed) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared[kSelftestThreads - 1 - threadIdx.x];
  if (!flawed) __syncthreads();
  shared[threadIdx.x] = __shfl_sync(kAllLanes, -1.0f, 0);
}

// A barrier that only one of two warps reaches.
inline __global__ void divergent_barrier_kernel(float* out, bool flawed) {
  if (!flawed || threadIdx.x < kWarp) __syncthreads();
  out[threadIdx.x] = kSelftestThreads - 1 - threadIdx.x;
}

// A shuffle that one lane of its mask has left before.
inline __global__ void early_return_kernel(float* out, bool flawed) {
  const float mirrored = kSelftestThreads - 1 - threadIdx.x;
  out[threadIdx.x] = mirrored;
  if (flawed && threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_sync(kAllLanes, mirrored, threadIdx.x % kWarp);
}

// One entry past the end of shared memory: only AddressSanitizer can see it.
inline __global__ void shared_overflow_kernel(float* out, bool flawed) {
  float* shared = dynamic_shared<float>();
  shared[threadIdx.x + flawed] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared[kSelftestThreads - 1 - threadIdx.x + flawed];
}

// Runs one of the kernels above; the number of threads that did not get the index of their mirror image.
inline int selftest(const std::string& name, bool flawed) {
  float out[kSelftestThreads] = {};
  const auto run = [&](void (*kernel)(float*, bool)) {
    launch(kernel, 1, kSelftestThreads, kSelftestThreads * sizeof(float), nullptr, static_cast<float*>(out), flawed);
  };
  if (name == "block_barrier") {
    run(block_barrier_kernel);
  } else if (name == "warp_barrier") {
    run(warp_barrier_kernel);
  } else if (name == "reused_memory") {
    run(reused_memory_kernel);
  } else if (name == "divergent_barrier") {
    run(divergent_barrier_kernel);
  } else if (name == "early_return") {
    run(early_return_kernel);
  } else {
    CHECK(name == "shared_overflow", "selftest: name: unknown, got ", name);
    run(shared_overflow_kernel);
  }
  int wrong = 0;
  for (int thread = 0; thread < kSelftestThreads; ++thread) wrong += !(out[thread] == kSelftestThreads - 1 - thread);
  return wrong;
}

}  // namespace subspan::emulator
