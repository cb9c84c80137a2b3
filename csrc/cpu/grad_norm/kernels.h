// What grad_norm_kernels.cpp defines at each instruction-set level. No std templates: see isa.h.
#pragma once

#include <stdint.h>

#include "cpu/vector/isa.h"
#include "cpu/vector/scaled.h"
#include "tensors/chunk.h"

namespace fastclip::cpu {

enum class NormKind { kL1, kL2, kMax, kMin, kPower };

struct NormOrder {
  NormKind kind;
  double p;
};

// partial[c][o] = sum of |x|, x^2 or |x|^p over chunk c, or its largest or smallest |x|, for each
// order o. Memory is read once: a chunk stays in cache from the first order to the last.
FASTCLIP_DECLARE(void reduce_chunks(const Chunk* chunks, int64_t count, const NormOrder* orders,
                                    int64_t order_count, Scaled* partial))

// x *= factor over all chunks, the last first: that is what caches still hold.
FASTCLIP_DECLARE(void scale_chunks(const Chunk* chunks, int64_t count, double factor))

}  // namespace fastclip::cpu
