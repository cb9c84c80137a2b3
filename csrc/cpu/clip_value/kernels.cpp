// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
#include "cpu/clip_value/kernels.h"

#include "cpu/vector/simd.h"

namespace fastclip::cpu::FASTCLIP_ISA {
namespace {

// What is read before it is known whether to write it: it stays in the first cache.
constexpr int64_t kBlock = 32 * kLanes;

struct Limits {
  f32v low, high;
};

FASTCLIP_INLINE i32v outside(f32v x, Limits limits) { return (x < limits.low) | (x > limits.high); }

FASTCLIP_INLINE f32v clamp(f32v x, Limits limits) {
  x = x < limits.low ? limits.low : x;
  return x > limits.high ? limits.high : x;
}

FASTCLIP_INLINE bool any(i32v lanes) {
  int32_t found = 0;
  for (int l = 0; l < kLanes; ++l) found |= lanes[l];
  return found != 0;
}

// n <= kBlock elements; whether any was outside.
template <class T>
FASTCLIP_INLINE bool clip_block(T* x, int64_t n, Limits limits) {
  i32v a{}, b{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    a |= outside(load_streamed(x + i), limits);
    b |= outside(load_streamed(x + i + kLanes), limits);
  }
  for (; i < n; i += kLanes) {
    a |= outside(n - i < kLanes ? load_part(x + i, n - i) : load(x + i), limits);
  }
  if (!any(a | b)) return false;
  for (i = 0; i + kLanes <= n; i += kLanes) store(x + i, clamp(load(x + i), limits));
  if (i < n) store_part(x + i, clamp(load_part(x + i, n - i), limits), n - i);
  return true;
}

template <class T>
bool clip(T* x, int64_t n, double limit) {
  T rounded[kLanes];
  store(rounded, splat((float)limit));
  const f32v high = load(rounded);
  const Limits limits = {-high, high};
  bool written = false;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) written |= clip_block(x + i, kBlock, limits);
  if (i < n) written |= clip_block(x + i, n - i, limits);
  return written;
}

bool clip(double* x, int64_t n, double limit) {
  constexpr int64_t kStep = 512;
  bool written = false;
  for (int64_t start = 0; start < n; start += kStep) {
    const int64_t end = n - start < kStep ? n : start + kStep;
    int64_t found = 0;
    for (int64_t i = start; i < end; ++i) found |= (x[i] < -limit) | (x[i] > limit);
    if (found == 0) continue;
    for (int64_t i = start; i < end; ++i) {
      const double v = x[i] < -limit ? -limit : x[i];
      x[i] = v > limit ? limit : v;
    }
    written = true;
  }
  return written;
}

bool clip_chunk(const Chunk& chunk, double limit) {
  switch (chunk.dtype) {
    case DType::kF32: return clip((float*)chunk.data, chunk.numel, limit);
    case DType::kF64: return clip((double*)chunk.data, chunk.numel, limit);
    case DType::kBF16: return clip((bfloat_t*)chunk.data, chunk.numel, limit);
    default: return clip((half_t*)chunk.data, chunk.numel, limit);
  }
}

}  // namespace

void clip_values(const Chunk* chunks, int64_t count, double limit, bool* written) {
  for (int64_t c = 0; c < count; ++c) written[c] = clip_chunk(chunks[c], limit);
}

}  // namespace fastclip::cpu::FASTCLIP_ISA
