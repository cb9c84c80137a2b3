// What kernels.cpp defines at each instruction-set level. No std templates: see isa.h.
#pragma once

#include <stdint.h>

#include "cpu/vector/isa.h"
#include "tensors/chunk.h"

namespace fastclip::cpu {

// x = min(max(x, -limit), limit) over all chunks, NaN kept; memory is written in blocks, and only
// where an element is outside. written[c]: whether anything of chunk c was.
FASTCLIP_DECLARE(void clip_values(const Chunk* chunks, int64_t count, double limit, bool* written))

}  // namespace fastclip::cpu
