// What kernels.cpp defines at each instruction-set level. No std templates: see isa.h.
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

// Of some elements; `squares` is the sum of (x - mean)^2. Without elements: 0, 0, 0, inf, -inf.
struct Moments {
  double count, mean, squares, min, max;
};

// partial[c][o] = sum of |x|, x^2 or |x|^p over chunk c, or its largest or smallest |x|, for each
// order o. Memory is read once: a chunk stays in cache from the first order to the last.
FASTCLIP_DECLARE(void reduce_chunks(const Chunk* chunks, int64_t count, const NormOrder* orders,
                                    int64_t order_count, Scaled* partial))

// The moments of each chunk. A chunk is read twice, and lies in cache then.
FASTCLIP_DECLARE(void find_moments(const Chunk* chunks, int64_t count, Moments* moments))

// x *= factor over all chunks, the last first: that is what caches still hold.
FASTCLIP_DECLARE(void scale_chunks(const Chunk* chunks, int64_t count, double factor))

}  // namespace fastclip::cpu
