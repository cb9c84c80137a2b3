// exp(-a) and log(1 + e), for a sigmoid and its cross entropy, a register at a time.
//
// With AVX-512 a permutation of registers is a table of 32 entries, and polynomials of degree two
// and three do; below it they are of degree six and nine. Zen 4 has one unit for products and one
// for sums and shifts; integer minima, maxima and sums, and selections, run on either. The largest
// relative errors over all floats: exp 2.2e-7 for a < 20 and 4.1e-7 at the end, log1p 3.6e-7.
// Internal linkage: see the rule in isa.h.
#pragma once

#include <math.h>

#include "cpu/vector/simd.h"

namespace fastclip::cpu {
namespace {

constexpr float kNothing = 87.f;  // exp(-87) = 1e-38, the last normal float

#if defined(__AVX512F__)

// The bits of 2^(i / 32), less i << 18.
constexpr uint32_t kExpTable[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};
// 1 / (1 + i / 32), the last at the middle of what is left.
constexpr float kInverseTable[32] = {
    1.f,         0.969697f,   0.9411765f,  0.9142857f, 0.8888889f,  0.8648649f,  0.84210527f,
    0.82051283f, 0.8f,        0.7804878f,  0.7619048f, 0.74418604f, 0.72727275f, 0.7111111f,
    0.6956522f,  0.68085104f, 0.6666667f,  0.6530612f, 0.64f,       0.627451f,   0.61538464f,
    0.6037736f,  0.5925926f,  0.58181816f, 0.5714286f, 0.5614035f,  0.55172414f, 0.5423729f,
    0.53333336f, 0.52459013f, 0.516129f,   0.5059289f};
// -log of those
constexpr float kLogTable[32] = {
    0.f,         0.030771628f, 0.060624618f, 0.089612156f, 0.117783025f, 0.14518198f, 0.17185025f,
    0.19782573f, 0.22314353f,  0.2478362f,   0.2719337f,   0.29546422f,  0.3184537f,  0.34092656f,
    0.36290547f, 0.38441172f,  0.40546507f,  0.42608443f,  0.44628713f,  0.4660897f,  0.4855078f,
    0.504556f,   0.52324814f,  0.5415973f,   0.55961573f,  0.57731533f,  0.59470713f, 0.61180156f,
    0.6286086f,  0.645138f,    0.66139853f,  0.6813592f};

// exp(-a) for a >= 0. NaN goes through.
FASTCLIP_INLINE f32v exp_neg(f32v magnitude) {
  // With its operands in this order the minimum of NaN and a number is NaN.
  const f32v a = (f32v)_mm512_min_ps((__m512)splat(kNothing), (__m512)magnitude);
  const f32v round = splat(393216.f);  // 1.5 * 2^18: adding it rounds to thirty-seconds
  const f32v shifted = a * -1.44269504f + round;
  const f32v n = shifted - round;  // -a / ln 2; in thirty-seconds it is shifted's last bits
  const f32v r = n * -0.693147182f - a;
  const __m512i thirty_second = _mm512_permutex2var_epi32(
      _mm512_loadu_si512(kExpTable), (__m512i)shifted, _mm512_loadu_si512(kExpTable + 16));
  // Up to the exponent: the bits of the thirty-seconds, which the table left out, come along.
  const f32v power = (f32v)_mm512_add_epi32(thirty_second, _mm512_slli_epi32((__m512i)shifted, 18));
  return (power * r) * (r * 0.50001f + 1.00001472f) + power;
}

// log(1 + e) for 0 <= e <= 1, around the nearest i / 32; around 0 nothing is lost for a tiny e.
FASTCLIP_INLINE f32v log1p_unit(f32v e) {
  const __m512i below_2 = _mm512_set1_epi32(0x3fffffff);
  const __m512i nearest = _mm512_min_epu32((__m512i)(e + 1.015625f), below_2);  // 1 + 1 / 64
  const __m512i i = _mm512_srli_epi32(nearest, 18);
  const f32v c = (f32v)_mm512_permutex2var_ps(_mm512_loadu_ps(kInverseTable), i,
                                              _mm512_loadu_ps(kInverseTable + 16));
  const f32v log =
      (f32v)_mm512_permutex2var_ps(_mm512_loadu_ps(kLogTable), i, _mm512_loadu_ps(kLogTable + 16));
  const f32v f = e * c + (c - 1);  // (1 + e) c - 1, within 1 / 64
  return ((f * 0.33333334f - 0.50004878f) * f + 1) * f + log;
}

// 1 where x >= 0, else e, of which 0 <= e <= 1: floats are ordered as their bits are.
FASTCLIP_INLINE f32v unit_or(f32v x, f32v e) {
  const i32v one = (i32v{} + 0x3f800000) ^ (bit_cast<i32v>(x) & INT32_MIN);  // negative as x is
  return (f32v)_mm512_max_epi32((__m512i)e, (__m512i)one);
}

FASTCLIP_INLINE f32v at_least_0(f32v x) {
  return (f32v)_mm512_max_epi32((__m512i)x, _mm512_setzero_si512());
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

FASTCLIP_INLINE f32v unit_or(f32v x, f32v e) { return x >= 0 ? splat(1.f) : e; }

FASTCLIP_INLINE f32v at_least_0(f32v x) { return x > 0 ? x : f32v{}; }

#endif

FASTCLIP_INLINE double exp_neg(double a) { return exp(-a); }
FASTCLIP_INLINE double log1p_unit(double e) { return log1p(e); }
FASTCLIP_INLINE double unit_or(double x, double e) { return x >= 0 ? 1 : e; }
FASTCLIP_INLINE double at_least_0(double x) { return x > 0 ? x : 0; }

}  // namespace
}  // namespace fastclip::cpu
