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

constexpr int kResident = 4;  // blocks of a multiprocessor: all kernels' registers allow as many

inline void check(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
}

// A function of the driver, by the name and the version 12.0 of its interface; the runtime that is
// linked here has found the library already.
template <class... Arguments>
int driver(const char* name, Arguments... arguments) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status));
#else
  check(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status));
#endif
  if (found == nullptr) throw std::runtime_error(std::string("CUDA: the driver has no ") + name);
  return reinterpret_cast<int (*)(Arguments...)>(found)(arguments...);
}

// Makes the tensors' device current while it lives. Its context, which has the tensors and so is
// there, lies on top of the thread's own meanwhile. cudaSetDevice would not do: setting the former
// device back makes a context on it where there was none, some 500 MB of its memory.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    int current = 0;
    check(cudaGetDevice(&current));
    if (device == current) return;
    require(driver("cuDeviceGet", &device_, device));
    require(driver("cuDevicePrimaryCtxRetain", &context_, device_));
    if (driver("cuCtxPushCurrent", context_) == 0) return;
    driver("cuDevicePrimaryCtxRelease", device_);
    require(1);
  }
  ~DeviceGuard() {
    if (context_ == nullptr) return;
    void* popped = nullptr;
    driver("cuCtxPopCurrent", &popped);
    driver("cuDevicePrimaryCtxRelease", device_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  static void require(int error) {
    if (error != 0) throw std::runtime_error("CUDA: the driver cannot make a device current");
  }

  int device_ = 0;  // a CUdevice
  void* context_ = nullptr;
};

// What is asked of the runtime once for each kernel and device.
struct Fit {
  uint32_t blocks;  // as many as the device runs at once, kResident a multiprocessor at the most
  bool overlaps;    // its code waits for the launch before it (sm_90), so it may begin early
};

template <auto* kernel>
Fit fit(int device) {
  static std::atomic<uint32_t> known[64] = {};
  const bool kept = device < 64;
  uint32_t packed = kept ? known[device].load() : 0;
  if (packed == 0) {
    int each = 0, multiprocessors = 0, version = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0));
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel));
    check(cudaDriverGetVersion(&version));
    // Of equal grids, a block scales what it has read: its end is what the L2 cache still holds.
    const int blocks = std::min(std::max(1, each), kResident) * multiprocessors;
    // ptxVersion is of the code that runs: what a later card makes of the PTX for sm_80 has no
    // wait. Graphs hold such launches from CUDA 12.3 on.
    const bool overlaps = attributes.ptxVersion >= 90 && version >= 12030;
    packed = static_cast<uint32_t>(std::min<int64_t>(blocks, kMaxBlocks)) << 1 | overlaps;
    if (kept) known[device] = packed;
  }
  return {packed >> 1, (packed & 1) != 0};
}

template <auto* kernel, class... Arguments>
void launch(uint32_t chunks, bool early, Queue queue, const Arguments&... arguments) {
  const Fit fits = fit<kernel>(queue.device);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min(std::max(1u, chunks), fits.blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(queue.stream);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = early && fits.overlaps ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// A launch that may begin early waits here for the one before it to end, its writes seen.
__device__ inline void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next launch begin, up to its wait, as this one's blocks end.
__device__ inline void let_next_launch_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace fastclip::cuda
