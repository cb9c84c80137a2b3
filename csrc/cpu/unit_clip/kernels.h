// What kernels.cpp defines at each instruction-set level. No std templates: see isa.h.
#pragma once

#include <stdint.h>

#include "cpu/vector/isa.h"
#include "cpu/vector/scaled.h"
#include "tensors/chunk.h"

namespace fastclip::cpu {

struct UnitRule {
  double clipping, eps;
};

// Whole units of one parameter, or a part of one that is too large for one thread.
struct UnitPiece {
  const void* weight;
  void* grad;
  int64_t units;  // 0: a part of one unit
  int64_t size;   // elements of each unit, or of the part
  DType dtype;
  int32_t pair;
  bool first;    // not a later part of the unit that the piece before it is of
  bool written;  // whether anything was scaled
  // Of a part: its sums of squares, set by clip_units; its unit's factor, read by scale_parts.
  Scaled weight_sum, grad_sum;
  double factor;
};

constexpr double kGradFloor = 1e-6;

// From sums of squares: 1 where |g| is within clipping * max(|w|, eps), else that limit over
// max(|g|, 1e-6); NaN where a sum is, or where the limit and |g| are both infinite.
static inline double unit_factor(Scaled weight_sum, Scaled grad_sum, UnitRule rule) {
  const double weight = root(weight_sum, 2);
  const double grad = root(grad_sum, 2);
  const double limit = rule.clipping * (weight < rule.eps ? rule.eps : weight);
  if (grad <= limit && !__builtin_isinf(grad)) return 1;
  return limit / (grad < kGradFloor ? kGradFloor : grad);
}

// Clips whole units, each while it is in cache; of parts, takes the sums of squares.
FASTCLIP_DECLARE(void clip_units(UnitPiece* pieces, int64_t count, UnitRule rule))

// Multiplies parts by their factors.
FASTCLIP_DECLARE(void scale_parts(UnitPiece* pieces, int64_t count))

}  // namespace fastclip::cpu
