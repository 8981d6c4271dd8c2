// The host side of the CUDA runtime, as far as the launchers need it. Under the emulator (SUBSPAN_CUDA_EMULATED) the
// "device" is the CPU, with the shared memory of an H100.
#pragma once
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/tensor_view.h"

#ifndef SUBSPAN_CUDA_EMULATED
#include <cuda_runtime_api.h>
#endif

namespace subspan {

#ifdef SUBSPAN_CUDA_EMULATED

constexpr Device kKernelDevice = Device::cpu;
constexpr int kCudaVersion = 0;

struct DeviceGuard {
  explicit DeviceGuard(int /*device*/) {}
};
inline std::pair<int, std::string> device_count() { return {1, "host emulator"}; }
inline std::size_t shared_bytes_limit(int /*device*/) { return 227 * 1024; }

#else

constexpr Device kKernelDevice = Device::cuda;
constexpr int kCudaVersion = CUDART_VERSION;

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // ours to report: the caller's framework must not find it again at its own next check
  throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(error));
}

// Makes `device` current for this scope, and restores the caller's device afterwards.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    int current = 0;
    check_cuda(cudaGetDevice(&current), "cudaGetDevice");
    if (current == device) return;
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    previous_ = current;
  }
  ~DeviceGuard() {
    if (previous_ >= 0) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;
};

// (number of devices, what the runtime said). Never throws: a missing or too old driver is an answer, not an error.
inline std::pair<int, std::string> device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return {count, cudaGetErrorString(error)};
  cudaGetLastError();
  return {0, cudaGetErrorString(error)};
}

// Shared memory one block may ask for: 227 KiB on sm_90, 163 on sm_80, 99 on sm_86 and sm_89.
inline std::size_t shared_bytes_limit(int device) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return static_cast<std::size_t>(bytes);
}

#endif

}  // namespace subspan
