// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
#include "cpu/unit_clip/kernels.h"

#include "cpu/vector/sums.h"

namespace fastclip::cpu::FASTCLIP_ISA {
namespace {

// Small sums are not taken again, as those outside sums.h's bounds are, where the norm has a floor
// far above them, as it has by default: units of zeros would all be read again.
constexpr double kHighFloor = 1e-12;

template <class T>
FASTCLIP_INLINE Scaled sum_squares(const T* x, int64_t n, double floor) {
  const double sum = sum_of<Square>(x, n);
  if (sum <= kFloatHigh && (sum >= kFloatLow || floor >= kHighFloor)) return {sum, 1};
  f64v wide{};  // the square of any float fits
  for (int64_t i = 0; i < n; i += kLanes) {
    const f32v part = n - i < kLanes ? load_part(x + i, n - i) : load(x + i);
    const f64v v = __builtin_convertvector(part, f64v);
    wide += v * v;
  }
  return {sum_lanes(wide), 1};
}

FASTCLIP_INLINE Scaled sum_squares(const double* x, int64_t n, double floor) {
  const double total = sum_of<Square>(x, n);
  if (total <= kDoubleHigh && (total >= kDoubleLow || floor >= kHighFloor)) return {total, 1};
  return scaled_squares(x, n);
}

template <class T>
void clip(UnitPiece& piece, UnitRule rule) {
  const T* weight = static_cast<const T*>(piece.weight);
  T* grad = static_cast<T*>(piece.grad);
  const double lowest = rule.clipping * rule.eps;  // no unit's limit is lower
  if (piece.units == 0) {
    piece.weight_sum = sum_squares(weight, piece.size, rule.eps);
    piece.grad_sum = sum_squares(grad, piece.size, lowest);
    return;
  }
  for (int64_t u = 0; u < piece.units; ++u, weight += piece.size, grad += piece.size) {
    const Scaled weight_sum = sum_squares(weight, piece.size, rule.eps);
    const Scaled grad_sum = sum_squares(grad, piece.size, lowest);
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

void clip_units(UnitPiece* pieces, int64_t count, UnitRule rule) {
  for (int64_t i = 0; i < count; ++i) {
    UnitPiece& piece = pieces[i];
    switch (piece.dtype) {
      case DType::kF32: clip<float>(piece, rule); break;
      case DType::kF64: clip<double>(piece, rule); break;
      case DType::kBF16: clip<bfloat_t>(piece, rule); break;
      default: clip<half_t>(piece, rule);
    }
  }
}

void scale_parts(UnitPiece* pieces, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    UnitPiece& piece = pieces[i];
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

}  // namespace fastclip::cpu::FASTCLIP_ISA
