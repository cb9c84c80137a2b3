// A stand-in for the CUDA runtime, so that a kernel's logic runs where there is no device.
//
// The threads of a block are fibers on one CPU thread, which change at barriers and shuffles only;
// blocks run one after another. The order of both is shuffled. So indexing, tails, tables, tickets
// and barriers that some thread misses are seen here; races between threads, memory order, real
// registers and speed are not: only a device shows those.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "fibers.h"

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

struct uint4 {
  unsigned int x, y, z, w;
};

using std::isfinite;
using std::max;
using std::min;

#define CUDART_VERSION 13000

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorLaunchFailure = 719
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum { cudaEnableDefault };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
using cudaStream_t = struct Stream*;

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned int numAttrs;
};

struct cudaFuncAttributes {
  int ptxVersion;
};

namespace on_host {

struct Device {  // what a test sets before, and reads after, a launch
  int driver = 13000;
  int multiprocessors = 3;
  int blocks_each = 2;
  int capability = 90;
  int oldest_code = 80;     // of what this binary has
  int current = 0;          // by cudaSetDevice
  std::set<int> contexts;   // devices that have one, which takes memory there
  std::vector<int> pushed;  // devices of the contexts on top of the thread's own
  bool capturing = false;
  bool host_only = false;  // launches run nothing: what is left is the host's part
  int launches = 0;
  int early = 0;  // launches that may begin before the one before them has ended
  unsigned int grid = 0;
  std::mt19937 order{0};
  std::string error;
};
inline Device device;

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace on_host

#define threadIdx (::on_host::block.running->index)
inline dim3 blockIdx, gridDim;

inline void __syncthreads() { on_host::block.pause(on_host::State::kAtBarrier); }
inline void __threadfence() {}

template <class T>
T __shfl_down_sync(unsigned int, T value, int step) {
  return on_host::shuffle_down(value, step);
}

template <class T>
T __shfl_sync(unsigned int, T value, int source) {
  return on_host::shuffle(value, static_cast<unsigned int>(source));
}

template <class T>
T __ldcg(const T* at) {
  return *at;
}

inline unsigned int atomicAdd(unsigned int* at, unsigned int x) {
  *at += x;
  return *at - x;
}

inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
  return {x, y, z, w};
}
inline float __uint_as_float(unsigned int bits) { return on_host::bit_cast<float>(bits); }
inline unsigned int __float_as_uint(float x) { return on_host::bit_cast<unsigned int>(x); }
inline double __longlong_as_double(long long bits) { return on_host::bit_cast<double>(bits); }
inline long long __double_as_longlong(double x) { return on_host::bit_cast<long long>(x); }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using namespace on_host;
  ++device.launches;
  device.early += config->numAttrs;
  device.grid = config->gridDim.x;
  if (device.host_only) return cudaSuccess;
  gridDim = config->gridDim;
  block_size = config->blockDim;
  block.kernel = [&] { kernel(arguments...); };
  std::vector<unsigned int> blocks(gridDim.x);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), device.order);
  for (const unsigned int b : blocks) {
    blockIdx = dim3(b, 0, 0);
    if (run_block(device.order)) continue;
    device.error = "deadlock: a barrier or shuffle that not every thread comes to";
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorNoKernelImageForDevice) return "no kernel image is available";
  return on_host::device.error.c_str();
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline cudaError_t cudaGetDevice(int* current) {
  const std::vector<int>& pushed = on_host::device.pushed;
  *current = pushed.empty() ? on_host::device.current : pushed.back();
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 64;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int wanted) {
  on_host::device.current = wanted;
  on_host::device.contexts.insert(wanted);
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = on_host::device.multiprocessors; break;
    case cudaDevAttrComputeCapabilityMajor: *value = on_host::device.capability / 10; break;
    default: *value = on_host::device.capability % 10;
  }
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = on_host::device.capability;
  const bool has_code = on_host::device.capability >= on_host::device.oldest_code;
  return has_code ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

// The driver's functions that the core asks for. A context is its device's number plus 1.
namespace on_host {

inline int get_device(int* handle, int ordinal) { return *handle = ordinal, 0; }

inline int retain(void** context, int handle) {
  device.contexts.insert(handle);
  *context = reinterpret_cast<void*>(static_cast<intptr_t>(handle) + 1);
  return 0;
}

inline int release(int) { return 0; }

inline int push(void* context) {
  device.pushed.push_back(static_cast<int>(reinterpret_cast<intptr_t>(context)) - 1);
  return 0;
}

inline int pop(void** context) {
  *context = reinterpret_cast<void*>(static_cast<intptr_t>(device.pushed.back()) + 1);
  device.pushed.pop_back();
  return 0;
}

}  // namespace on_host

inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned int,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult*) {
  const std::string wanted = name;
  *found = nullptr;
  if (wanted == "cuDeviceGet") *found = reinterpret_cast<void*>(on_host::get_device);
  if (wanted == "cuDevicePrimaryCtxRetain") *found = reinterpret_cast<void*>(on_host::retain);
  if (wanted == "cuDevicePrimaryCtxRelease") {
    *found = reinterpret_cast<void*>(static_cast<int (*)(int)>(on_host::release));
  }
  if (wanted == "cuCtxPushCurrent") *found = reinterpret_cast<void*>(on_host::push);
  if (wanted == "cuCtxPopCurrent") *found = reinterpret_cast<void*>(on_host::pop);
  return cudaSuccess;
}

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = on_host::device.driver;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = on_host::device.blocks_each;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = on_host::device.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
