// Launching kernels on a device: its errors, its being current, and the grid that fills it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "cuda/block.h"
#include "cuda/grad_norm.h"

namespace fastclip::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

// Makes the tensors' device current, and the caller's again afterwards.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_));
    if (device == previous_) return;
    check(cudaSetDevice(device));
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// As many blocks as the device runs at once; asked of the runtime once for each kernel and device.
template <auto* kernel>
uint32_t resident_blocks(int device) {
  static std::atomic<uint32_t> known[64] = {};
  const bool fits = device < 64;
  if (fits && known[device] != 0) return known[device];
  int each = 0, multiprocessors = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0));
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const uint32_t blocks = std::min<int>(std::max(1, each) * multiprocessors, kMaxBlocks);
  if (fits) known[device] = blocks;
  return blocks;
}

template <auto* kernel, class... Arguments>
void launch(uint32_t chunks, Queue queue, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min(std::max(1u, chunks), resident_blocks<kernel>(queue.device)));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace fastclip::cuda
