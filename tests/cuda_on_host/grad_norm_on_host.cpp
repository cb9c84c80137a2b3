// csrc/cuda, compiled for the CPU against the stand-in beside this file, with a C
// interface for the tests.
#include "cuda_runtime.h"

namespace fastclip::cuda {

inline float half_to_float(uint16_t bits) { return on_host::bit_cast<_Float16>(bits); }

inline uint32_t pack_halves(float low, float high) {
  return on_host::bit_cast<uint16_t>(static_cast<_Float16>(low)) |
         static_cast<uint32_t>(on_host::bit_cast<uint16_t>(static_cast<_Float16>(high))) << 16;
}

inline uint32_t float_to_bfloat(float x) {
  const uint32_t bits = on_host::bit_cast<uint32_t>(x);
  if (x != x) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // nearest, ties to even
}

inline uint32_t pack_bfloats(float low, float high) {
  return float_to_bfloat(low) | float_to_bfloat(high) << 16;
}

}  // namespace fastclip::cuda

#include "cuda/grad_norm.cu"
#include "cuda/scale.cu"
#include "cuda/unit_clip.cu"

using namespace fastclip;
using fastclip::cuda::Tensors;

namespace {

std::string g_error;

Tensors tensors_of(void* const* data, const int64_t* numel, const int32_t* dtype, int32_t count) {
  Tensors tensors;
  for (int32_t t = 0; t < count; ++t) {
    tensors.push_back({data[t], numel[t], static_cast<DType>(dtype[t]), t});
  }
  return tensors;
}

std::vector<cuda::UnitPair> pairs_of(void* const* weight, void* const* grad, const int64_t* units,
                                     const int64_t* size, const int32_t* dtype, int32_t count) {
  std::vector<cuda::UnitPair> pairs;
  for (int32_t p = 0; p < count; ++p) {
    pairs.push_back({weight[p], grad[p], units[p], size[p], static_cast<DType>(dtype[p])});
  }
  return pairs;
}

// Calls `use(warp)` as the first thread of each warp of each block of a grid. The threads come
// one after another: they share no barrier.
template <class Use>
void each_warp(uint32_t grid, Use use) {
  on_host::Fiber fiber;
  on_host::block.running = &fiber;
  gridDim = dim3(grid);
  for (uint32_t b = 0; b < grid; ++b) {
    blockIdx = dim3(b);
    for (uint32_t warp = 0; warp < cuda::kWarps; ++warp) {
      fiber.index = dim3(warp * 32, 0, 0);
      use(warp);
    }
  }
}

template <class F>
const char* caught(F call) {
  try {
    call();
    return nullptr;
  } catch (const std::exception& error) {
    g_error = error.what();
    return g_error.c_str();
  }
}

}  // namespace

extern "C" {

void set_device(int32_t multiprocessors, int32_t blocks_each, uint32_t seed, bool capturing) {
  on_host::device.multiprocessors = multiprocessors;
  on_host::device.blocks_each = blocks_each;
  on_host::device.order.seed(seed);
  on_host::device.capturing = capturing;
  on_host::device.launches = 0;
  on_host::device.early = 0;
}

void set_driver(int32_t version) { on_host::device.driver = version; }
void set_host_only(bool host_only) { on_host::device.host_only = host_only; }

int32_t launches() { return on_host::device.launches; }
uint32_t last_grid() { return on_host::device.grid; }
int32_t current_device() { return on_host::device.current; }

int32_t tickets_in_use() {
  int32_t used = 0;
  for (const unsigned int ticket : cuda::g_tickets) used += ticket != 0;
  return used;
}

int32_t early_launches() { return on_host::device.early; }
void set_capability(int32_t capability, int32_t oldest_code) {
  on_host::device.capability = capability;
  on_host::device.oldest_code = oldest_code;
}
void forget_contexts() { on_host::device.contexts.clear(); }
bool has_context(int32_t device) { return on_host::device.contexts.count(device) != 0; }

const char* why_not(int32_t device) {
  g_error = cuda::why_not(device);
  return g_error.c_str();
}

int64_t work_size(void* const* data, const int64_t* numel, const int32_t* dtype, int32_t count) {
  return cuda::kWorkHeader + cuda::partials(tensors_of(data, numel, dtype, count));
}

const char* grad_norm(void* const* data, const int64_t* numel, const int32_t* dtype, int32_t count,
                      double p, double max_norm, double* work, void* total, int32_t total_dtype,
                      double* per_tensor, const double* units, int32_t device) {
  return caught([&] {
    cuda::grad_norm(tensors_of(data, numel, dtype, count), p, max_norm,
                    {work, total, static_cast<DType>(total_dtype), per_tensor}, units,
                    {device, nullptr});
  });
}

// `factor` is a cuda::Factor.
const char* scale_grads(void* const* data, const int64_t* numel, const int32_t* dtype,
                        int32_t count, int32_t factor, double max_norm, const void* number,
                        int32_t number_dtype, double value, bool after_norm, int32_t device) {
  return caught([&] {
    const cuda::Multiplier multiplier{static_cast<cuda::Factor>(factor),
                                      number,
                                      static_cast<DType>(number_dtype),
                                      value,
                                      max_norm,
                                      after_norm};
    cuda::scale_grads(tensors_of(data, numel, dtype, count), multiplier, {device, nullptr});
  });
}

const char* clamp_grads(void* const* data, const int64_t* numel, const int32_t* dtype,
                        int32_t count, double limit, int32_t device) {
  return caught(
      [&] { cuda::clamp_grads(tensors_of(data, numel, dtype, count), limit, {device, nullptr}); });
}

// The pieces of a list that the first thread of each block has, from the table alone: the tensors
// need not exist. Returns how many; writes those that there is room for.
int32_t pieces(void* const* data, const int64_t* numel, const int32_t* dtype, int32_t count,
               uint32_t grid, bool backwards, uint64_t* address, int64_t* elements, int32_t room) {
  auto page = std::make_unique<cuda::SmallPage>();
  cuda::fill(*page, tensors_of(data, numel, dtype, count), 0);
  int32_t found = 0;
  each_warp(grid, [&](uint32_t warp) {
    const auto use = [&](uint32_t, const cuda::Piece& piece, cuda::Team team) {
      if (team.is_block() && warp != 0) return;
      if (found < room) {
        address[found] = reinterpret_cast<uint64_t>(piece.data);
        elements[found] = piece.numel;
      }
      ++found;
    };
    if (backwards) {
      cuda::walk<true>(*page, use);
    } else {
      cuda::walk<false>(*page, use);
    }
  });
  return found;
}

bool takes_units(int64_t units, int64_t size, int32_t dtype) {
  return cuda::takes_units({nullptr, nullptr, units, size, static_cast<DType>(dtype)});
}

const char* clip_units(void* const* weight, void* const* grad, const int64_t* units,
                       const int64_t* size, const int32_t* dtype, int32_t count, double clipping,
                       double eps, int32_t device) {
  return caught([&] {
    cuda::clip_units(pairs_of(weight, grad, units, size, dtype, count), {clipping, eps},
                     {device, nullptr});
  });
}

// The units of some pairs as the warps of a grid come to them, long ones eight times. Of each: the
// address of its gradient, and the warp, or -1 - warp where the whole block has it. Returns how
// many, and writes those that there is room for; -1 where a page has not all pairs.
int64_t walked_units(void* const* weight, void* const* grad, const int64_t* units,
                     const int64_t* size, const int32_t* dtype, int32_t count, uint32_t grid,
                     uint64_t* address, int32_t* by, int64_t room) {
  auto page = std::make_unique<cuda::LargeUnitPage>();
  const auto pairs = pairs_of(weight, grad, units, size, dtype, count);
  if (fill(*page, pairs, 0) != pairs.size()) return -1;
  int64_t found = 0;
  each_warp(grid, [&](uint32_t warp) {
    cuda::walk_units(*page, [&](const cuda::Unit& unit, cuda::Team team) {
      if (found < room) {
        address[found] = reinterpret_cast<uint64_t>(unit.grad);
        by[found] = team.is_block() ? -1 - static_cast<int32_t>(warp) : static_cast<int32_t>(warp);
      }
      ++found;
    });
  });
  return found;
}

// A kernel whose last warp never comes to the barrier: the stand-in must say so.
void broken_kernel() {
  if (threadIdx.x < 32) __syncthreads();
}

const char* run_broken_kernel() {
  return caught([] {
    cudaLaunchConfig_t config{};
    config.blockDim = dim3(64);
    cuda::check(cudaLaunchKernelEx(&config, broken_kernel));
  });
}
}
