// A register of floats as one value (GCC and clang vector extensions), with loads and stores that
// convert from any dtype. Everything here has internal linkage: see the rule in isa.h.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FASTCLIP_INLINE static inline __attribute__((always_inline))

namespace fastclip::cpu {
namespace {

// As many floats as one register of the level holds: wider vectors would be taken apart, badly.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float f32v __attribute__((vector_size(4 * kLanes)));
typedef int32_t i32v __attribute__((vector_size(4 * kLanes)));
typedef uint32_t u32v __attribute__((vector_size(4 * kLanes)));
typedef uint16_t u16v __attribute__((vector_size(2 * kLanes)));
typedef uint8_t u8v __attribute__((vector_size(kLanes)));
typedef double f64v __attribute__((vector_size(8 * kLanes)));

struct half_t {
  uint16_t bits;
};
struct bfloat_t {
  uint16_t bits;
};

template <class To, class From>
FASTCLIP_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V>
FASTCLIP_INLINE V load_raw(const void* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}

FASTCLIP_INLINE f32v splat(float x) { return f32v{} + x; }

FASTCLIP_INLINE f32v abs(f32v x) { return bit_cast<f32v>(bit_cast<u32v>(x) & 0x7fffffffu); }
FASTCLIP_INLINE double abs(double x) { return __builtin_fabs(x); }

// Portable half <-> float; the instructions of F16C and of aarch64 do the same where there are any.
FASTCLIP_INLINE f32v half_to_float(u16v h) {
#if defined(__AVX512F__)
  return (f32v)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  return (f32v)_mm256_cvtph_ps((__m128i)h);
#elif defined(__aarch64__)
  return (f32v)vcvt_f32_f16((float16x4_t)h);
#else
  const u32v bits = __builtin_convertvector(h, u32v);
  const u32v magnitude = (bits & 0x7fffu) << 13;
  // 2^112 moves half's exponent bias to float's and normalises subnormals on the way.
  f32v value = bit_cast<f32v>(magnitude) * 0x1p112f;
  const i32v special = (i32v)(magnitude >= (u32v{} + 0x0f800000u));
  const f32v infinite = bit_cast<f32v>(magnitude | 0x7f800000u);
  value = special ? infinite : value;
  return bit_cast<f32v>(bit_cast<u32v>(value) | ((bits & 0x8000u) << 16));
#endif
}

FASTCLIP_INLINE u16v float_to_half(f32v x) {
#if defined(__AVX512F__)
  return (u16v)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (u16v)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  return (u16v)vcvt_f16_f32((float32x4_t)x);
#else
  const u32v bits = bit_cast<u32v>(x);
  const u32v magnitude = bits & 0x7fffffffu;
  // Normal halves: rebias and round to nearest, ties to even, in integers; a carry reaches
  // infinity.
  const u32v normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal halves: adding 0.5 lines their last bit up with float's last bit.
  const u32v subnormal = bit_cast<u32v>(bit_cast<f32v>(magnitude) + 0.5f) - 0x3f000000u;
  u32v half = magnitude < (u32v{} + 0x38800000u) ? subnormal : normal;
  half = magnitude >= (u32v{} + 0x47800000u) ? (u32v{} + 0x7c00u) : half;
  half = magnitude > (u32v{} + 0x7f800000u) ? (u32v{} + 0x7e00u) : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000u), u16v);
#endif
}

// GCC takes the widening of a vector of 8 bytes apart: aarch64's is spelt out.
FASTCLIP_INLINE f32v bfloat_to_float(u16v b) {
#if defined(__aarch64__)
  return (f32v)vshlq_n_u32(vmovl_u16((uint16x4_t)b), 16);
#else
  return bit_cast<f32v>(__builtin_convertvector(b, u32v) << 16);
#endif
}

FASTCLIP_INLINE u16v float_to_bfloat(f32v x) {
  const u32v bits = bit_cast<u32v>(x);
  const u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // nearest, ties to even
  const u32v nan = u32v{} + 0x7fc0u;
  return __builtin_convertvector(x == x ? rounded : nan, u16v);
}

FASTCLIP_INLINE f32v load(const float* p) { return load_raw<f32v>(p); }
FASTCLIP_INLINE f32v load(const half_t* p) { return half_to_float(load_raw<u16v>(p)); }
FASTCLIP_INLINE f32v load(const bfloat_t* p) { return bfloat_to_float(load_raw<u16v>(p)); }
// With intrinsics where there are any: GCC takes the conversion of so short a vector apart.
FASTCLIP_INLINE f32v load(const uint8_t* p) {
#if defined(__AVX512F__)
  return (f32v)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_raw<__m128i>(p)));
#elif defined(__AVX2__)
  return (f32v)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif defined(__aarch64__)
  uint32_t four;
  memcpy(&four, p, sizeof(four));
  const uint16x8_t wide = vmovl_u8(vcreate_u8(four));
  return (f32v)vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
#else
  return __builtin_convertvector(__builtin_convertvector(load_raw<u8v>(p), i32v), f32v);
#endif
}
FASTCLIP_INLINE f32v load(const double* p) {
  return __builtin_convertvector(load_raw<f64v>(p), f32v);
}

// `load` of memory that a pass reads from end to end. Zen 4 fetches ahead of loads of 32 bytes, as
// v3 has them, faster than of loads of 64.
template <class T>
FASTCLIP_INLINE f32v load_streamed(const T* p) {
  return load(p);
}
#if defined(__AVX512F__)
FASTCLIP_INLINE f32v load_streamed(const float* p) {
  __m256d low = load_raw<__m256d>(p);
  asm("" : "+x"(low));  // or compilers make one load of both
  const __m256d high = load_raw<__m256d>(p + kLanes / 2);
  return (f32v)_mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1);
}
#endif

FASTCLIP_INLINE void store(float* p, f32v x) { memcpy(p, &x, sizeof(x)); }
FASTCLIP_INLINE void store(double* p, double x) { *p = x; }
FASTCLIP_INLINE void store(half_t* p, f32v x) {
  const u16v h = float_to_half(x);
  memcpy(p, &h, sizeof(h));
}
FASTCLIP_INLINE void store(bfloat_t* p, f32v x) {
  const u16v b = float_to_bfloat(x);
  memcpy(p, &b, sizeof(b));
}

// To an aligned address, without reading its line first. Other threads see it after stream_fence().
FASTCLIP_INLINE void store_past_cache(float* p, f32v x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX__)
  _mm256_stream_ps(p, (__m256)x);
#else
  store(p, x);
#endif
}

FASTCLIP_INLINE void stream_fence() {
#if defined(__AVX__)
  _mm_sfence();
#endif
}

// The first n < kLanes elements, the rest zero; and their way back.
#if defined(__AVX512F__)

FASTCLIP_INLINE uint16_t first_lanes(int64_t n) { return (uint16_t)((1u << n) - 1); }

FASTCLIP_INLINE f32v load_part(const float* p, int64_t n) {
  return (f32v)_mm512_maskz_loadu_ps(first_lanes(n), p);
}
FASTCLIP_INLINE f32v load_part(const half_t* p, int64_t n) {
  return half_to_float((u16v)_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
FASTCLIP_INLINE f32v load_part(const bfloat_t* p, int64_t n) {
  return bfloat_to_float((u16v)_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
FASTCLIP_INLINE f32v load_part(const uint8_t* p, int64_t n) {
  return (f32v)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p)));
}
FASTCLIP_INLINE f32v load_part(const double* p, int64_t n) {
  const uint16_t lanes = first_lanes(n);
  const __m256 low = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd((uint8_t)lanes, p));
  const __m256 high = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd(lanes >> 8, p + kLanes / 2));
  return (f32v)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}

FASTCLIP_INLINE void store_part(float* p, f32v x, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)x);
}
FASTCLIP_INLINE void store_part(half_t* p, f32v x, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)float_to_half(x));
}
FASTCLIP_INLINE void store_part(bfloat_t* p, f32v x, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)float_to_bfloat(x));
}

#else

// memcpy, by a call where the length is not known: GCC spells a short one out in twenty branches.
FASTCLIP_INLINE void copy(void* to, const void* from, int64_t bytes) {
  if (!__builtin_constant_p(bytes)) asm("" : "+r"(bytes));  // or GCC knows that it is short
  memcpy(to, from, bytes);
}

template <class T>
FASTCLIP_INLINE f32v load_part(const T* p, int64_t n) {
  T padded[kLanes];
  memset(padded, 0, sizeof(padded));
  copy(padded, p, n * sizeof(T));
  return load(padded);
}

template <class T>
FASTCLIP_INLINE void store_part(T* p, f32v x, int64_t n) {
  T padded[kLanes];
  store(padded, x);
  copy(p, padded, n * sizeof(T));
}

#endif

// Lanes `lanes`, `lanes` + 1, ... of a, and then the first of b.
template <int lanes>
FASTCLIP_INLINE f32v shifted_lanes(f32v a, f32v b) {
#if defined(__AVX512F__)
  return (f32v)_mm512_alignr_epi32((__m512i)b, (__m512i)a, lanes);
#else
  float both[2 * kLanes];
  store(both, a);
  store(both + kLanes, b);
  return load(both + lanes);
#endif
}

FASTCLIP_INLINE double sum_lanes(f64v x) {
  double total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

}  // namespace
}  // namespace fastclip::cpu
