// Sums of many values, and their scaling. Compiled per instruction-set level, with internal linkage
// throughout: see the rule in isa.h.
#pragma once

#include <math.h>

#include "cpu/vector/scaled.h"
#include "cpu/vector/simd.h"

namespace fastclip::cpu {
namespace {

typedef uint64_t u64v __attribute__((vector_size(8 * kLanes)));

// float32 lanes are emptied into double after this many elements: 16 additions a lane bound the
// rounding error of a sum of squares by 16 * 2^-24, however large the tensor.
constexpr int64_t kBlock = 64 * kLanes;

// A float32 sum of squares inside these bounds has lost nothing that matters to overflow or to
// squares under 2^-126 (at most 2^16 elements, 1.2e-38 each). Outside, the chunk is summed again.
constexpr double kFloatLow = 1e-25, kFloatHigh = 1e38;
constexpr double kDoubleLow = 1e-290, kDoubleHigh = 1e300;

struct Square {
  template <class V>
  FASTCLIP_INLINE V add(V sum, V x) {
    return sum + x * x;
  }
};

struct Magnitude {
  FASTCLIP_INLINE f32v add(f32v sum, f32v x) { return sum + abs(x); }
  FASTCLIP_INLINE f64v add(f64v sum, f64v x) {
    return sum + bit_cast<f64v>(bit_cast<u64v>(x) & 0x7fffffffffffffffull);
  }
};

// The last `left` < kLanes of n elements, the other lanes zero: load_part's copy of unknown length
// would take as long as a short tensor.
template <class T>
FASTCLIP_INLINE f32v load_last(const T* x, int64_t n, int64_t left) {
  if (n < kLanes) return load_part(x, n);
  i32v lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  const f32v all = load(x + n - kLanes);
  return lane >= (int32_t)(kLanes - left) ? all : f32v{};
}

template <class Op, class T>
FASTCLIP_INLINE double sum_of(const T* x, int64_t n) {
  f64v total{};
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    f32v a{}, b{}, c{}, d{};
    for (int64_t j = i; j < i + kBlock; j += 4 * kLanes) {
      a = Op::add(a, load_streamed(x + j));
      b = Op::add(b, load_streamed(x + j + kLanes));
      c = Op::add(c, load_streamed(x + j + 2 * kLanes));
      d = Op::add(d, load_streamed(x + j + 3 * kLanes));
    }
    total += __builtin_convertvector((a + b) + (c + d), f64v);
  }
  f32v a{}, b{}, c{}, d{};
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a = Op::add(a, load_streamed(x + i));
    b = Op::add(b, load_streamed(x + i + kLanes));
    c = Op::add(c, load_streamed(x + i + 2 * kLanes));
    d = Op::add(d, load_streamed(x + i + 3 * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) a = Op::add(a, load_streamed(x + i));
  if (i < n) b = Op::add(b, load_last(x, n, n - i));
  return sum_lanes(total + __builtin_convertvector((a + b) + (c + d), f64v));
}

template <class Op>
FASTCLIP_INLINE double sum_of(const double* x, int64_t n) {
  f64v a{}, b{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    a = Op::add(a, load_raw<f64v>(x + i));
    b = Op::add(b, load_raw<f64v>(x + i + kLanes));
  }
  double padded[2 * kLanes] = {};
  memcpy(padded, x + i, (n - i) * sizeof(double));
  a = Op::add(a, load_raw<f64v>(padded));
  b = Op::add(b, load_raw<f64v>(padded + kLanes));
  return sum_lanes(a + b);
}

template <class T>
FASTCLIP_INLINE double scalar(const T* x, int64_t i) {
  return load_part(x + i, 1)[0];
}
FASTCLIP_INLINE double scalar(const float* x, int64_t i) { return x[i]; }
FASTCLIP_INLINE double scalar(const double* x, int64_t i) { return x[i]; }

// As integers, magnitudes keep their order and NaN comes above infinity, so it is never lost.
template <class T>
FASTCLIP_INLINE double max_magnitude(const T* x, int64_t n) {
  u32v a{}, b{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const u32v v = bit_cast<u32v>(abs(load_streamed(x + i)));
    const u32v w = bit_cast<u32v>(abs(load_streamed(x + i + kLanes)));
    a = v > a ? v : a;
    b = w > b ? w : b;
  }
  for (; i < n; i += kLanes) {
    const u32v v = bit_cast<u32v>(abs(load_part(x + i, n - i < kLanes ? n - i : kLanes)));
    a = v > a ? v : a;
  }
  uint32_t best = 0;
  for (int l = 0; l < kLanes; ++l) best = a[l] > best ? a[l] : best;
  for (int l = 0; l < kLanes; ++l) best = b[l] > best ? b[l] : best;
  return bit_cast<float>(best);
}

FASTCLIP_INLINE double max_magnitude(const double* x, int64_t n) {
  uint64_t best = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t v = bit_cast<uint64_t>(x[i]) & 0x7fffffffffffffffull;
    best = v > best ? v : best;
  }
  return bit_cast<double>(best);
}

// The sum of squares where that of a chunk leaves double's range.
FASTCLIP_INLINE Scaled scaled_squares(const double* x, int64_t n) {
  const double largest = max_magnitude(x, n);
  if (!(largest > 0 && largest <= DBL_MAX)) return {largest, 1};  // zeros; an infinity; NaN
  const double unit = unit_below(largest);
  double wide = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = x[i] / unit;
    wide += v * v;
  }
  return {wide, unit};
}

template <class T>
FASTCLIP_INLINE void scale(T* x, int64_t n, double factor) {
  int64_t i = 0;
  if (factor != 0 && fabs(factor) < 1.2e-38) {  // float32 would round it to a few bits
    for (; i < n; ++i) store_part(x + i, splat((float)(scalar(x, i) * factor)), 1);
    return;
  }
  const f32v f = splat((float)factor);
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) * f);
  if (i < n) store_part(x + i, load_part(x + i, n - i) * f, n - i);
}

FASTCLIP_INLINE void scale(double* x, int64_t n, double factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

}  // namespace
}  // namespace fastclip::cpu
