// A thread's part of the sum, or the largest, of a piece: float32 in registers, then float64.
#pragma once

#include "cuda/block.h"
#include "cuda/numbers.h"
#include "cuda/walk.h"

namespace fastclip::cuda {

// A float32 sum of squares within these bounds lost nothing that matters to overflow or to squares
// under 2^-126. Outside, the same registers are summed again, scaled by a power of two. float64 is
// squared as it is: the norm is infinite from 1e154 on, as torch's.
constexpr float kLow = 1e-25f, kHigh = 1e38f;

template <NormKind kind>
__device__ inline float gather(float sum, float x) {
  if (kind == NormKind::kL2) return fmaf(x, x, sum);
  if (kind == NormKind::kL1) return sum + fabsf(x);
  const uint32_t magnitude = __float_as_uint(x) & 0x7fffffffu;  // as integers, NaN is the largest
  return __uint_as_float(max(magnitude, __float_as_uint(sum)));
}

template <NormKind kind>
__device__ inline double gather(double sum, double x) {
  if (kind == NormKind::kL2) return fma(x, x, sum);
  return combine<kind>(sum, fabs(x));
}

// One sum per vector component, so that few additions in a row are float32; then pairs of them.
template <NormKind kind, class Number>
__device__ typename Number::Real sum_vectors(const Vector (&v)[kInFlight],
                                             typename Number::Real scale) {
  constexpr int kItems = Number::kItems;
  typename Number::Real sum[kItems] = {};
#pragma unroll
  for (int k = 0; k < kInFlight; ++k) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      sum[i] = gather<kind>(sum[i], Number::item(v[k].word, i) * scale);
    }
  }
#pragma unroll
  for (int width = kItems / 2; width > 0; width /= 2) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sum[i] =
          kind == NormKind::kMax ? gather<kind>(sum[i], sum[i + width]) : sum[i] + sum[i + width];
    }
  }
  return sum[0];
}

template <NormKind kind, class Number>
__device__ double batch(const Vector (&v)[kInFlight]) {
  const typename Number::Real sum = sum_vectors<kind, Number>(v, 1);
  if (kind == NormKind::kMax || sizeof(sum) == sizeof(double)) return sum;
  if (sum >= kLow && sum <= kHigh) return sum;
  const bool tiny = sum < kLow;  // the square of any float32 times 2^96 or 2^-96 fits its range
  const double again = sum_vectors<kind, Number>(v, tiny ? 0x1p96f : 0x1p-96f);
  const double back = tiny ? 0x1p-96 : 0x1p96;
  return kind == NormKind::kL2 ? again * back * back : again * back;
}

// This thread's part of a piece, for orders whose zeros may stand in for what is not there.
template <NormKind kind, class Number>
__device__ double reduce(const Piece& piece, Team team) {
  const Split<Number> x(piece.data, piece.numel);
  const uint4* body = x.body();
  double total = 0;
  // First, so that where head and tail lie takes no registers of the loop.
  const auto* edge = x.edge(team.thread);
  if (edge != nullptr) total = gather<kind>(total, static_cast<double>(Number::real(*edge)));
#pragma unroll 1
  for (uint32_t i = team.thread; i < x.vectors; i += team.threads * kInFlight) {
    Vector v[kInFlight] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const uint32_t at = i + k * team.threads;
      if (at < x.vectors) v[k] = Vector::load(body + at);
    }
    total = combine<kind>(total, batch<kind, Number>(v));
  }
  return total;
}

}  // namespace fastclip::cuda
