// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
#include "cpu/grad_norm/kernels.h"

#include <math.h>

#include "cpu/vector/sums.h"

namespace fastclip::cpu::FASTCLIP_ISA {
namespace {

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

// Each chunk is summed in plain steps first. Where that left its dtype's range it is summed again:
// wider, or float64 and powers in a unit of the chunk's own.
template <class T>
FASTCLIP_INLINE Scaled sum_squares(const T* x, int64_t n) {
  const double total = sum_of<Square>(x, n);
  if (total >= kFloatLow && total <= kFloatHigh) return {total, 1};
  double wide = 0;  // the square of any float fits a double
  for (int64_t i = 0; i < n; ++i) wide += scalar(x, i) * scalar(x, i);
  return {wide, 1};
}

FASTCLIP_INLINE Scaled sum_squares(const double* x, int64_t n) {
  const double total = sum_of<Square>(x, n);
  if (total >= kDoubleLow && total <= kDoubleHigh) return {total, 1};
  return scaled_squares(x, n);
}

template <class T>
FASTCLIP_INLINE Scaled sum_magnitudes(const T* x, int64_t n) {
  const bool is_double = sizeof(T) == sizeof(double);
  const double total = sum_of<Magnitude>(x, n);
  if (total <= (is_double ? kDoubleHigh : kFloatHigh)) return {total, 1};
  const double unit = is_double ? 0x1p900 : 1;  // no sum of floats overflows a double
  double wide = 0;
  for (int64_t i = 0; i < n; ++i) wide += fabs(scalar(x, i)) / unit;
  return {wide, unit};
}

template <class T>
FASTCLIP_INLINE Scaled sum_powers(const T* x, int64_t n, double p) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += pow(fabs(scalar(x, i)), p);
  if (total >= kDoubleLow && total <= kDoubleHigh) return {total, 1};
  const double extreme = p > 0 ? max_magnitude(x, n) : min_magnitude(x, n);
  if (!(extreme > 0 && extreme <= DBL_MAX)) return {total, 1};  // all zeros; an infinity; NaN
  // Divided by the extreme itself, so that no power of the quotient overflows, whatever p is.
  const double lift = extreme < DBL_MIN ? 0x1p60 : 1;
  double wide = 0;
  for (int64_t i = 0; i < n; ++i) {
    wide += pow(fabs(scalar(x, i)) * lift / (extreme * lift), p);
  }
  return {wide, extreme};
}

template <class T>
Scaled reduce(const void* data, int64_t n, NormKind kind, double p) {
  const T* x = static_cast<const T*>(data);
  switch (kind) {
    case NormKind::kL1: return sum_magnitudes(x, n);
    case NormKind::kL2: return sum_squares(x, n);
    case NormKind::kMax: return {max_magnitude(x, n), 1};
    case NormKind::kMin: return {min_magnitude(x, n), 1};
    default: return sum_powers(x, n, p);
  }
}

Scaled reduce_chunk(const Chunk& chunk, NormKind kind, double p) {
  switch (chunk.dtype) {
    case DType::kF32: return reduce<float>(chunk.data, chunk.numel, kind, p);
    case DType::kF64: return reduce<double>(chunk.data, chunk.numel, kind, p);
    case DType::kBF16: return reduce<bfloat_t>(chunk.data, chunk.numel, kind, p);
    default: return reduce<half_t>(chunk.data, chunk.numel, kind, p);
  }
}

template <class T>
FASTCLIP_INLINE f64v load_wide(const T* x) {
  return __builtin_convertvector(load(x), f64v);
}
FASTCLIP_INLINE f64v load_wide(const double* x) { return load_raw<f64v>(x); }

// In two steps: from sums of x and of x^2 alone, a small deviation of large values has no digits.
template <class T>
Moments moments_of(const void* data, int64_t n) {
  const T* x = static_cast<const T*>(data);
  f64v sum{}, least = f64v{} + (double)INFINITY, most = f64v{} - (double)INFINITY, squares{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const f64v v = load_wide(x + i);
    sum += v;
    least = v < least ? v : least;
    most = v > most ? v : most;
  }
  Moments found{(double)n, sum_lanes(sum), 0, INFINITY, -INFINITY};
  for (int l = 0; l < kLanes; ++l) {
    found.min = least[l] < found.min ? least[l] : found.min;
    found.max = most[l] > found.max ? most[l] : found.max;
  }
  bool has_nan = false;
  for (; i < n; ++i) {
    const double v = scalar(x, i);
    found.mean += v;
    found.min = v < found.min ? v : found.min;
    found.max = v > found.max ? v : found.max;
  }
  found.mean /= (double)n;
  if (found.mean != found.mean) {  // NaN, or infinities of both signs
    for (int64_t j = 0; j < n; ++j) has_nan |= scalar(x, j) != scalar(x, j);
  }
  if (has_nan) found.min = found.max = NAN;
  for (i = 0; i + kLanes <= n; i += kLanes) {
    const f64v d = load_wide(x + i) - found.mean;
    squares += d * d;
  }
  found.squares = sum_lanes(squares);
  for (; i < n; ++i) {
    const double d = scalar(x, i) - found.mean;
    found.squares += d * d;
  }
  return found;
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
                   Scaled* partial) {
  for (int64_t c = 0; c < count; ++c) {
    if (c + 1 < count) prefetch_start(chunks[c + 1]);
    for (int64_t o = 0; o < order_count; ++o) {
      *partial++ = reduce_chunk(chunks[c], orders[o].kind, orders[o].p);
    }
  }
}

void find_moments(const Chunk* chunks, int64_t count, Moments* moments) {
  for (int64_t c = 0; c < count; ++c) {
    const Chunk& chunk = chunks[c];
    switch (chunk.dtype) {
      case DType::kF32: moments[c] = moments_of<float>(chunk.data, chunk.numel); break;
      case DType::kF64: moments[c] = moments_of<double>(chunk.data, chunk.numel); break;
      case DType::kBF16: moments[c] = moments_of<bfloat_t>(chunk.data, chunk.numel); break;
      default: moments[c] = moments_of<half_t>(chunk.data, chunk.numel);
    }
  }
}

void scale_chunks(const Chunk* chunks, int64_t count, double factor) {
  for (int64_t c = count - 1; c >= 0; --c) scale_chunk(chunks[c], factor);
}

}  // namespace fastclip::cpu::FASTCLIP_ISA
