// What a kernel file needs from CUDA beyond the language: launching, dynamic shared memory, and two scalar helpers.
// Kernel sources contain no <<<>>> and no `extern __shared__`, so that the host emulator can compile them unchanged.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/cuda/device.h"

#ifdef SUBSPAN_CUDA_EMULATED
#include "core/cuda/emulator.h"
#endif

namespace subspan {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
template <class T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();  // constants, because the functions are for the host only
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

#ifdef SUBSPAN_CUDA_EMULATED

// Small, so that ordinary tests go through the splitting of large batches.
constexpr std::int64_t kMaxBlocks = 16;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), std::int64_t blocks, int threads, std::size_t shared_bytes, void* /*stream*/,
            Args... args) {
  emulator::run_grid([=] { kernel(args...); }, static_cast<unsigned>(blocks), threads, shared_bytes);
}

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(emulator::shared_memory());
}

inline float reciprocal_sqrt(float x) { return 1 / std::sqrt(x); }
inline double reciprocal_sqrt(double x) { return 1 / std::sqrt(x); }

#else

constexpr std::int64_t kMaxBlocks = (std::int64_t{1} << 31) - 1;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), std::int64_t blocks, int threads, std::size_t shared_bytes, void* stream,
            Args... args) {
  if (shared_bytes > 48 * 1024) {
    check_cuda(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
        "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check_cuda(cudaLaunchKernelEx(&config, kernel, args...), "kernel launch");
}

template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return reinterpret_cast<T*>(shared_bytes);
}

// rsqrtf is good to 2 ulp; one Newton step makes it nearly correctly rounded. x * root before root: x / 2 may
// underflow.
__device__ inline float reciprocal_sqrt(float x) {
  const float root = rsqrtf(x);
  return root * (1.5f - 0.5f * (x * root) * root);
}
__device__ inline double reciprocal_sqrt(double x) { return rsqrt(x); }

#endif

// True in the first warp. Asked through a shuffle, because a plain `threadIdx.x < 32` hides from the compiler that the
// answer is the same for a whole warp, and it then wraps every shuffle under it in a slow path.
__device__ inline bool in_first_warp() { return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0) == 0; }

// Calls run(first, count) for consecutive parts of the batch that fit one grid at `per_block` items a block.
template <class Run>
void for_each_grid(std::int64_t batch, std::int64_t per_block, Run&& run) {
  const std::int64_t largest = kMaxBlocks * per_block;
  for (std::int64_t first = 0; first < batch; first += largest) {
    run(first, batch - first < largest ? batch - first : largest);
  }
}

}  // namespace subspan
