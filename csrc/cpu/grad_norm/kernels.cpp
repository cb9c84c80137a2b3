// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
#include "cpu/grad_norm/kernels.h"

#include <math.h>

#include "cpu/vector/sums.h"

namespace fastclip::cpu::FASTCLIP_ISA {
namespace {

// The wide path, in x87's 64-bit mantissa and 15-bit exponent (or whatever long double is here).
template <class T, class F>
FASTCLIP_INLINE long double sum_wide(const T* x, int64_t n, F power) {
  long double total = 0;
  for (int64_t i = 0; i < n; ++i) total += power(fabsl((long double)scalar(x, i)));
  return total;
}

template <class T>
FASTCLIP_INLINE long double sum_squares(const T* x, int64_t n) {
  const bool is_double = sizeof(T) == sizeof(double);
  const double low = is_double ? kDoubleLow : kFloatLow;
  const double high = is_double ? kDoubleHigh : kFloatHigh;
  const double total = sum_of<Square>(x, n);
  if (total >= low && total <= high) return total;
  if (is_double) return sum_wide(x, n, [](long double v) { return v * v; });
  double wide = 0;  // the square of any float fits a double
  for (int64_t i = 0; i < n; ++i) wide += scalar(x, i) * scalar(x, i);
  return wide;
}

template <class T>
FASTCLIP_INLINE long double sum_magnitudes(const T* x, int64_t n) {
  const double total = sum_of<Magnitude>(x, n);
  if (total <= (sizeof(T) == sizeof(double) ? kDoubleHigh : kFloatHigh)) return total;
  return sum_wide(x, n, [](long double v) { return v; });
}

template <class T>
FASTCLIP_INLINE long double sum_powers(const T* x, int64_t n, double p) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += pow(fabs(scalar(x, i)), p);
  if (total >= kDoubleLow && total <= kDoubleHigh) return total;
  return sum_wide(x, n, [p](long double v) { return powl(v, p); });
}

// As integers, magnitudes keep their order and NaN comes above infinity, so it is never lost.
template <class T>
FASTCLIP_INLINE double max_magnitude(const T* x, int64_t n) {
  u32v a{}, b{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const u32v v = bit_cast<u32v>(abs(load(x + i)));
    const u32v w = bit_cast<u32v>(abs(load(x + i + kLanes)));
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

template <class T>
FASTCLIP_INLINE double min_magnitude(const T* x, int64_t n) {
  double best = INFINITY;
  for (int64_t i = 0; i < n; ++i) {
    const double v = fabs(scalar(x, i));
    if (v < best || v != v) best = v;
    if (v != v) break;
  }
  return best;
}

template <class T>
long double reduce(const void* data, int64_t n, NormKind kind, double p) {
  const T* x = static_cast<const T*>(data);
  switch (kind) {
    case NormKind::kL1: return sum_magnitudes(x, n);
    case NormKind::kL2: return sum_squares(x, n);
    case NormKind::kMax: return max_magnitude(x, n);
    case NormKind::kMin: return min_magnitude(x, n);
    default: return sum_powers(x, n, p);
  }
}

long double reduce_chunk(const Chunk& chunk, NormKind kind, double p) {
  switch (chunk.dtype) {
    case DType::kF32: return reduce<float>(chunk.data, chunk.numel, kind, p);
    case DType::kF64: return reduce<double>(chunk.data, chunk.numel, kind, p);
    case DType::kBF16: return reduce<bfloat_t>(chunk.data, chunk.numel, kind, p);
    default: return reduce<half_t>(chunk.data, chunk.numel, kind, p);
  }
}

void scale_chunk(const Chunk& chunk, double factor) {
  switch (chunk.dtype) {
    case DType::kF32: return scale((float*)chunk.data, chunk.numel, factor);
    case DType::kF64: return scale((double*)chunk.data, chunk.numel, factor);
    case DType::kBF16: return scale((bfloat_t*)chunk.data, chunk.numel, factor);
    default: return scale((half_t*)chunk.data, chunk.numel, factor);
  }
}

// The hardware sees where a tensor goes on, but not where the next one lies: 5 % of a thousand.
FASTCLIP_INLINE void prefetch_start(const Chunk& chunk) {
  constexpr int64_t kMost = 512;  // elements: half a page of float32
  const int64_t bytes = (chunk.numel < kMost ? chunk.numel : kMost) * 4;
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)chunk.data + at);
}

}  // namespace

void reduce_chunks(const Chunk* chunks, int64_t count, const NormOrder* orders, int64_t order_count,
                   long double* partial) {
  for (int64_t c = 0; c < count; ++c) {
    if (c + 1 < count) prefetch_start(chunks[c + 1]);
    for (int64_t o = 0; o < order_count; ++o) {
      *partial++ = reduce_chunk(chunks[c], orders[o].kind, orders[o].p);
    }
  }
}

void scale_chunks(const Chunk* chunks, int64_t count, double factor) {
  for (int64_t c = count - 1; c >= 0; --c) scale_chunk(chunks[c], factor);
}

}  // namespace fastclip::cpu::FASTCLIP_ISA
