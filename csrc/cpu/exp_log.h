// exp(-a), log(1 + e) and 1 / (1 + e) for a sigmoid and its cross entropy, a register at a time.
//
// With AVX-512 a permutation of registers is a table of 16 or 32 entries, and polynomials of degree
// three do; below it they are of degree six and nine. The largest relative errors over all floats:
// exp 1.3e-7 for a < 20 and 3.2e-7 at the end, log1p 3.6e-7. Internal linkage: see the rule in
// isa.h.
#pragma once

#include <math.h>

#include "simd.h"

namespace fastclip::cpu {
namespace {

constexpr float kNothing = 87.f;  // exp(-87) = 1e-38, the last normal float

#if defined(__AVX512F__)

// 2^(i / 16)
constexpr float kExpTable[16] = {1.f,         1.04427373f, 1.09050775f, 1.13878858f,
                                 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
                                 1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f,
                                 1.68179286f, 1.75625217f, 1.8340081f,  1.91520655f};
// 1 / (1 + i / 31)
constexpr float kInverseTable[32] = {
    1.f,          0.96875f,     0.939393938f, 0.911764681f, 0.885714293f, 0.861111104f,
    0.837837815f, 0.815789461f, 0.794871807f, 0.774999976f, 0.756097555f, 0.738095224f,
    0.720930219f, 0.704545438f, 0.688888907f, 0.673913062f, 0.659574449f, 0.645833313f,
    0.632653058f, 0.620000005f, 0.607843161f, 0.596153855f, 0.584905684f, 0.57407409f,
    0.563636363f, 0.553571403f, 0.543859661f, 0.534482777f, 0.525423706f, 0.516666651f,
    0.508196712f, 0.5f};
// -log of those
constexpr float kLogTable[32] = {
    0.f,          0.0317486983f, 0.0625203589f, 0.092373347f, 0.121360849f, 0.149531742f,
    0.176930735f, 0.203598971f,  0.229574426f,  0.25489228f,  0.27958487f,  0.303682433f,
    0.32721293f,  0.350202453f,  0.372675258f,  0.394654165f, 0.416160426f, 0.437213837f,
    0.457833099f, 0.478035793f,  0.49783839f,   0.517256499f, 0.536304669f, 0.554996815f,
    0.573345983f, 0.591364532f,  0.609064042f,  0.626455771f, 0.643550284f, 0.660357389f,
    0.676886679f, 0.693147181f};

// exp(-a) for a >= 0. NaN goes through.
FASTCLIP_INLINE f32v exp_neg(f32v magnitude) {
  // With its operands in this order the minimum of NaN and a number is NaN.
  const f32v a = (f32v)_mm512_min_ps((__m512)splat(kNothing), (__m512)magnitude);
  const f32v round = splat(786432.f);  // 1.5 * 2^19: adding it rounds to sixteenths
  const f32v shifted = a * -1.44269504f + round;
  const f32v n = shifted - round;  // -a / ln 2; its sixteenths are shifted's last four bits
  const f32v r = n * -0.693147182f - a;
  const f32v power = (f32v)_mm512_scalef_ps(
      _mm512_permutexvar_ps((__m512i)shifted, _mm512_loadu_ps(kExpTable)), (__m512)n);
  return power * ((r * r) * (r * 0.16666667f + 0.5f) + r) + power;
}

// log(1 + e) for 0 <= e <= 1, around the nearest i / 31; around 0 nothing is lost for a tiny e.
FASTCLIP_INLINE f32v log1p_unit(f32v e) {
  const f32v nearest = e * 0.96875f + 1.015625f;  // 1 + (31 e + 1 / 2) / 32
  const __m512i i = _mm512_srli_epi32((__m512i)nearest, 18);
  const f32v c = (f32v)_mm512_permutex2var_ps(_mm512_loadu_ps(kInverseTable), i,
                                              _mm512_loadu_ps(kInverseTable + 16));
  const f32v log =
      (f32v)_mm512_permutex2var_ps(_mm512_loadu_ps(kLogTable), i, _mm512_loadu_ps(kLogTable + 16));
  const f32v f = e * c + (c - 1);  // (1 + e) c - 1, within 1 / 62
  return ((f * 0.33333334f - 0.50004878f) * f + 1) * f + log;
}

FASTCLIP_INLINE f32v at_least_0(f32v x) {
  return (f32v)_mm512_max_ps((__m512)x, _mm512_setzero_ps());  // 0 for NaN
}

#else

// 2^n exp(r). NaN goes through.
FASTCLIP_INLINE f32v exp_neg(f32v magnitude) {
  const f32v a = magnitude > kNothing ? splat(kNothing) : magnitude;
  const f32v round = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const f32v shifted = a * -1.44269504f + round;
  const f32v n = shifted - round;
  const f32v r = (-a - n * 0.693359375f) + n * 2.12194440e-4f;  // n ln 2 in two parts
  const f32v r2 = r * r;
  const f32v low = r * 0.166665201f + 0.499999934f, high = r * 0.00836878041f + 0.0416683942f;
  const f32v e = ((r2 * 0.00138144671f + high) * r2 + low) * r2 + (r + 1.f);
  const i32v exponent = bit_cast<i32v>(shifted) << 23;  // n; the rounding bits fall off
  const f32v scaled = bit_cast<f32v>(bit_cast<i32v>(e) + exponent);
  return a == a ? scaled : a;
}

// Summed as a tree: as a chain, its latency and not its count would set the pace.
FASTCLIP_INLINE f32v log1p_unit(f32v e) {
  const f32v e2 = e * e, e4 = e2 * e2;
  const f32v a = e * -0.499994931f + 0.99999997f, b = e * -0.248429821f + 0.333190968f;
  const f32v c = e * -0.136632453f + 0.191060064f, d = e * -0.0295052373f + 0.0782259478f;
  return ((e4 * 0.00523269411f + (d * e2 + c)) * e4 + (b * e2 + a)) * e;
}

FASTCLIP_INLINE f32v at_least_0(f32v x) { return x > 0 ? x : f32v{}; }

#endif

FASTCLIP_INLINE double exp_neg(double a) { return exp(-a); }
FASTCLIP_INLINE double log1p_unit(double e) { return log1p(e); }
FASTCLIP_INLINE double at_least_0(double x) { return x > 0 ? x : 0; }

}  // namespace
}  // namespace fastclip::cpu
