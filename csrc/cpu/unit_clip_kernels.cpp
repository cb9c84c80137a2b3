// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
#include "unit_clip_kernels.h"

#include "simd.h"

namespace fastclip::cpu::FASTCLIP_ISA {
namespace {

// Sums of squares outside these bounds are taken again in a wider type; but not small ones where
// the norm has a floor far above them, as it has by default: units of zeros would all be read
// again.
constexpr double kFloatLow = 1e-25, kFloatHigh = 1e38;
constexpr double kDoubleLow = 1e-290, kDoubleHigh = 1e300;
constexpr double kHighFloor = 1e-12;

// float32 lanes are emptied into double after this many elements, which bounds the rounding error
// of a sum by 16 * 2^-24, however long the unit.
constexpr int64_t kBlock = 64 * kLanes;

// The last `left` < kLanes of n elements, the other lanes zero. Rows are short and many, and
// load_part's copy of unknown length would take as long as the row.
template <class T>
FASTCLIP_INLINE f32v load_last(const T* x, int64_t n, int64_t left) {
  if (n < kLanes) return load_part(x, n);
  i32v lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  const f32v all = load(x + n - kLanes);
  return lane >= static_cast<int32_t>(kLanes - left) ? all : f32v{};
}

template <class T>
FASTCLIP_INLINE double sum_in_floats(const T* x, int64_t n) {
  f64v total{};
  int64_t i = 0;
  while (i < n) {
    const int64_t end = i + kBlock < n ? i + kBlock : n;
    f32v a{}, b{}, c{}, d{};
    for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
      const f32v v0 = load(x + i), v1 = load(x + i + kLanes);
      const f32v v2 = load(x + i + 2 * kLanes), v3 = load(x + i + 3 * kLanes);
      a += v0 * v0;
      b += v1 * v1;
      c += v2 * v2;
      d += v3 * v3;
    }
    for (; i + kLanes <= end; i += kLanes) {
      const f32v v = load(x + i);
      a += v * v;
    }
    if (i < end) {
      const f32v v = load_last(x, n, n - i);
      b += v * v;
      i = end;
    }
    total += __builtin_convertvector((a + b) + (c + d), f64v);
  }
  return sum_lanes(total);
}

template <class T>
FASTCLIP_INLINE long double sum_squares(const T* x, int64_t n, double floor) {
  const double sum = sum_in_floats(x, n);
  if (sum <= kFloatHigh && (sum >= kFloatLow || floor >= kHighFloor)) return sum;
  f64v wide{};  // the square of any float fits
  for (int64_t i = 0; i < n; i += kLanes) {
    const f32v part = n - i < kLanes ? load_part(x + i, n - i) : load(x + i);
    const f64v v = __builtin_convertvector(part, f64v);
    wide += v * v;
  }
  return sum_lanes(wide);
}

FASTCLIP_INLINE long double sum_squares(const double* x, int64_t n, double floor) {
  f64v lanes{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const f64v v = load_raw<f64v>(x + i);
    lanes += v * v;
  }
  double total = sum_lanes(lanes);
  for (; i < n; ++i) total += x[i] * x[i];
  if (total <= kDoubleHigh && (total >= kDoubleLow || floor >= kHighFloor)) return total;
  long double wide = 0;
  for (i = 0; i < n; ++i) wide += (long double)x[i] * x[i];
  return wide;
}

template <class T>
FASTCLIP_INLINE void scale(T* x, int64_t n, double factor) {
  int64_t i = 0;
  if (factor != 0 && factor < 1.2e-38) {  // float32 would round it to a few bits
    for (; i < n; ++i) {
      const double product = load_part(x + i, 1)[0] * factor;
      store_part(x + i, splat((float)product), 1);
    }
    return;
  }
  const f32v f = splat((float)factor);
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) * f);
  if (i < n) store_part(x + i, load_part(x + i, n - i) * f, n - i);
}

FASTCLIP_INLINE void scale(double* x, int64_t n, double factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

template <class T>
void clip(UnitPiece& piece, UnitRule rule) {
  const T* weight = static_cast<const T*>(piece.weight);
  T* grad = static_cast<T*>(piece.grad);
  if (piece.units == 0) {
    piece.weight_sum = sum_squares(weight, piece.size, rule.eps);
    piece.grad_sum = sum_squares(grad, piece.size, kGradFloor);
    return;
  }
  for (int64_t u = 0; u < piece.units; ++u, weight += piece.size, grad += piece.size) {
    const long double weight_sum = sum_squares(weight, piece.size, rule.eps);
    const long double grad_sum = sum_squares(grad, piece.size, kGradFloor);
    const double factor = unit_factor(weight_sum, grad_sum, rule);
    if (factor == 1) continue;
    scale(grad, piece.size, factor);
    piece.written = true;
  }
}

template <class T>
void scale_part(UnitPiece& piece) {
  scale(static_cast<T*>(piece.grad), piece.size, piece.factor);
}

}  // namespace

void clip_units(const UnitTasks& tasks, UnitRule rule) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(tasks.threads) if (tasks.threads > 1)
  for (int64_t t = 0; t < tasks.count; ++t) {
    for (int64_t i = tasks.bounds[t]; i < tasks.bounds[t + 1]; ++i) {
      UnitPiece& piece = tasks.pieces[i];
      switch (piece.dtype) {
        case DType::kF32: clip<float>(piece, rule); break;
        case DType::kF64: clip<double>(piece, rule); break;
        case DType::kBF16: clip<bfloat_t>(piece, rule); break;
        default: clip<half_t>(piece, rule);
      }
    }
  }
}

void scale_parts(const UnitTasks& tasks) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(tasks.threads) if (tasks.threads > 1)
  for (int64_t t = 0; t < tasks.count; ++t) {
    for (int64_t i = tasks.bounds[t]; i < tasks.bounds[t + 1]; ++i) {
      UnitPiece& piece = tasks.pieces[i];
      if (piece.units != 0 || piece.factor == 1) continue;
      switch (piece.dtype) {
        case DType::kF32: scale_part<float>(piece); break;
        case DType::kF64: scale_part<double>(piece); break;
        case DType::kBF16: scale_part<bfloat_t>(piece); break;
        default: scale_part<half_t>(piece);
      }
      piece.written = true;
    }
  }
}

}  // namespace fastclip::cpu::FASTCLIP_ISA
