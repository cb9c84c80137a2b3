// How gradients lie in memory and what they are in arithmetic: 16 bytes at a time, or one by one.
// 16-bit floats are converted by instruction here; a host compiler brings its own three functions.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace fastclip::cuda {

#if defined(__CUDACC__)
__device__ inline float half_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ inline uint32_t pack_halves(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

__device__ inline uint32_t pack_bfloats(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
#endif

struct F32 {
  using Bits = uint32_t;
  using Real = float;
  static constexpr int kItems = 4;  // in 16 bytes
  static __device__ float real(Bits bits) { return __uint_as_float(bits); }
  static __device__ Bits bits(float x) { return __float_as_uint(x); }
  static __device__ float item(const uint32_t* word, int i) { return real(word[i]); }
  static __device__ Bits take(const uint32_t* word, int i) { return word[i]; }
  static __device__ void put(uint32_t* word, int i, Bits x) { word[i] = x; }
  static __device__ void scale(uint32_t* word, int i, float f) {
    word[i] = bits(item(word, i) * f);
  }
};

struct F64 {
  using Bits = unsigned long long;
  using Real = double;
  static constexpr int kItems = 2;
  static __device__ double real(Bits bits) { return __longlong_as_double(bits); }
  static __device__ Bits bits(double x) { return __double_as_longlong(x); }
  static __device__ Bits take(const uint32_t* word, int i) {
    return static_cast<Bits>(word[2 * i + 1]) << 32 | word[2 * i];
  }
  static __device__ void put(uint32_t* word, int i, Bits x) {
    word[2 * i] = static_cast<uint32_t>(x);
    word[2 * i + 1] = static_cast<uint32_t>(x >> 32);
  }
  static __device__ double item(const uint32_t* word, int i) { return real(take(word, i)); }
  static __device__ void scale(uint32_t* word, int i, double f) {
    put(word, i, bits(item(word, i) * f));
  }
};

// Two numbers a word, scaled together: the odd turn has nothing left to do.
template <class Number>
struct Narrow {
  using Bits = uint16_t;
  using Real = float;
  static constexpr int kItems = 8;
  static __device__ Bits bits(float x) { return static_cast<Bits>(Number::pack(x, 0)); }
  static __device__ Bits take(const uint32_t* word, int i) {
    return static_cast<Bits>(word[i / 2] >> (i % 2 * 16));
  }
  static __device__ void put(uint32_t* word, int i, Bits x) {
    const uint32_t other = word[i / 2] & (0xffff0000u >> (i % 2 * 16));
    word[i / 2] = other | static_cast<uint32_t>(x) << (i % 2 * 16);
  }
  static __device__ float item(const uint32_t* word, int i) { return Number::real(take(word, i)); }
  static __device__ void scale(uint32_t* word, int i, float f) {
    if (i % 2 == 0) word[i / 2] = Number::pack(item(word, i) * f, item(word, i + 1) * f);
  }
};

struct BF16 : Narrow<BF16> {
  static __device__ float real(Bits bits) {
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  }
  static __device__ uint32_t pack(float low, float high) { return pack_bfloats(low, high); }
};

struct F16 : Narrow<F16> {
  static __device__ float real(Bits bits) { return half_to_float(bits); }
  static __device__ uint32_t pack(float low, float high) { return pack_halves(low, high); }
};

// 16-byte loads that a thread has under way. Little's law: HBM3 at 3.35 TB/s and 700 ns wants 2.3
// MB in flight, 18 KB on each of an H100's 132 multiprocessors, HBM3e at 8 TB/s and 800 ns 43 KB on
// each of 148. Four blocks of 256 threads have 64 KB of 4 loads each.
constexpr int kInFlight = 4;

// 16 bytes in registers.
struct Vector {
  uint32_t word[4];

  static __device__ Vector load(const uint4* at) {
    const uint4 raw = __ldcg(at);
    return {{raw.x, raw.y, raw.z, raw.w}};
  }
  __device__ void store(uint4* at) const { *at = make_uint4(word[0], word[1], word[2], word[3]); }
};

// A run of elements as scalars up to the first 16-byte boundary, whole vectors, and scalars again.
template <class Number>
struct Split {
  using Bits = typename Number::Bits;
  static constexpr int kItems = Number::kItems;

  __device__ Split(void* data, int64_t numel) : data(static_cast<Bits*>(data)) {
    const int past = static_cast<int>(reinterpret_cast<uintptr_t>(data) % 16 / sizeof(Bits));
    const int to_boundary = past == 0 ? 0 : kItems - past;
    head = to_boundary < numel ? to_boundary : static_cast<int>(numel);
    vectors = static_cast<uint32_t>((numel - head) / kItems);
    tail = static_cast<int>(numel - head - static_cast<int64_t>(vectors) * kItems);
  }

  __device__ uint4* body() const { return reinterpret_cast<uint4*>(data + head); }

  // The scalar that this thread answers for, or null: the first 8 threads take the head, the next
  // 8 the tail; neither has more than 7.
  __device__ Bits* edge(int thread) const {
    if (thread < 8) return thread < head ? data + thread : nullptr;
    const int64_t after = head + static_cast<int64_t>(vectors) * kItems;
    return thread - 8 < tail ? data + after + thread - 8 : nullptr;
  }

  Bits* data;
  uint32_t vectors;  // 64 GB of them at the most
  int head;
  int tail;
};

}  // namespace fastclip::cuda
