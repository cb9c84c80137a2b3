// From an image's sums to its loss and to the factors of its gradient. Internal linkage: isa.h.
#pragma once

#include "cpu/structure_loss/kernels.h"
#include "cpu/vector/simd.h"

namespace fastclip::cpu {
namespace {

// One head's sums over an image, its bands in order.
FASTCLIP_INLINE LossSums image_sums(const LossPass& pass, int64_t image, int64_t head) {
  LossSums sums{};
  for (int64_t band = 0; band < pass.bands; ++band) {
    const LossSums& part = pass.sums[(image * pass.bands + band) * pass.head_count + head];
    sums.bce_weight += part.bce_weight;
    sums.bce += part.bce;
    sums.intersection += part.intersection;
    sums.total += part.total;
  }
  return sums;
}

// With no valid pixel there is nothing to lose: loss and gradient are zero.
FASTCLIP_INLINE double loss_of(const LossPass& pass, const LossSums& s) {
  if (s.bce_weight == 0) return 0;
  if (pass.pixel_iou) return s.bce / s.bce_weight + s.intersection / s.total;
  const double denominator = s.total - s.intersection + pass.smooth;
  return s.bce / s.bce_weight + 1 - (s.intersection + pass.smooth) / denominator;
}

FASTCLIP_INLINE LossGradient gradient_of(const LossPass& pass, const LossSums& s, double upstream) {
  if (s.bce_weight == 0) return {0, 0, 0};
  if (pass.pixel_iou) return {upstream / s.bce_weight, upstream / s.total, 0};
  const double smooth = pass.smooth;
  const double denominator = s.total - s.intersection + smooth;
  const double scale = upstream / (denominator * denominator);
  return {upstream / s.bce_weight, scale * (s.intersection + smooth),
          scale * (s.total + 2 * smooth)};
}

FASTCLIP_INLINE void find_gradients(const LossPass& pass, int64_t image) {
  for (int64_t head = 0; head < pass.head_count; ++head) {
    pass.gradients[image * pass.head_count + head] =
        gradient_of(pass, image_sums(pass, image, head), pass.upstream[head]);
  }
}

}  // namespace
}  // namespace fastclip::cpu
