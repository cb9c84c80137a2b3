// csrc/cuda/grad_norm.cu, compiled for the CPU against the stand-in beside this file, with a C
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

int64_t work_size(void* const* data, const int64_t* numel, const int32_t* dtype, int32_t count,
                  bool per_tensor) {
  return cuda::kWorkHeader + cuda::partials(tensors_of(data, numel, dtype, count), per_tensor);
}

const char* grad_norm(void* const* data, const int64_t* numel, const int32_t* dtype, int32_t count,
                      double p, double max_norm, double* work, void* total, int32_t total_dtype,
                      double* per_tensor, float* optimizer, int32_t device) {
  return caught([&] {
    cuda::grad_norm(tensors_of(data, numel, dtype, count), p, max_norm,
                    {work, total, static_cast<DType>(total_dtype), per_tensor, optimizer},
                    {device, nullptr});
  });
}

const char* scale_grads(void* const* data, const int64_t* numel, const int32_t* dtype,
                        int32_t count, double max_norm, const void* norm, int32_t norm_dtype,
                        double value, int32_t device) {
  return caught([&] {
    cuda::scale_grads(tensors_of(data, numel, dtype, count), max_norm,
                      {norm, static_cast<DType>(norm_dtype), value}, {device, nullptr});
  });
}

// Where a chunk of a list lies, from the table alone: the tensors need not exist.
void find_chunk(void* const* data, const int64_t* numel, const int32_t* dtype, int32_t count,
                uint32_t chunk, uint64_t* address, int32_t* chunk_numel, uint32_t* chunks) {
  auto page = std::make_unique<cuda::SmallPage>();
  cuda::fill(*page, tensors_of(data, numel, dtype, count), 0);
  *chunks = page->chunks;
  const cuda::Piece piece = cuda::find(*page, chunk);
  *address = reinterpret_cast<uint64_t>(piece.data);
  *chunk_numel = piece.numel;
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
