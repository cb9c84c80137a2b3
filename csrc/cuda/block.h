// Threads of a block working as one: totals in a fixed order, and finding the last block.
#pragma once

#include <cuda_runtime.h>
#include <math.h>

namespace fastclip::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

enum class NormKind { kL1, kL2, kMax, kMin, kPower };

// What is nothing beside any other number.
template <NormKind kind>
__device__ inline double nothing() {
  return kind == NormKind::kMin ? HUGE_VAL : 0.0;
}

template <NormKind kind>
__device__ inline double combine(double a, double b) {
  if (kind != NormKind::kMax && kind != NormKind::kMin) return a + b;
  if (a != a) return a;
  const bool a_stays = kind == NormKind::kMax ? b <= a : b >= a;
  return a_stays ? a : b;  // a NaN in b is taken, and kept
}

// The total over a warp, in lane 0.
template <NormKind kind>
__device__ inline double warp_total(double x) {
  for (int step = 16; step > 0; step /= 2) {
    x = combine<kind>(x, __shfl_down_sync(0xffffffffu, x, step));
  }
  return x;
}

// The total over the block, in thread 0.
template <NormKind kind>
__device__ double block_total(double x) {
  __shared__ double warp[kWarps];
  x = warp_total<kind>(x);
  __syncthreads();  // the last total has been read
  if (threadIdx.x % 32 == 0) warp[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) x = combine<kind>(x, warp[w]);
  }
  return x;
}

// Whether every other block has come by here before. What any thread of each block wrote before
// this is then visible to all threads of the block that hears yes; it resets the ticket for the
// next launch.
__device__ inline bool is_last_block(unsigned int* ticket) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (last) *ticket = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace fastclip::cuda
