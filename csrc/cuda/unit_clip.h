// Adaptive gradient clipping, unit by unit, on a CUDA device. No torch and no CUDA header here.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/grad_norm.h"

namespace fastclip::cuda {

// A weight and its gradient: elements of unit u lie, in any order, at [u * size, (u + 1) * size).
struct UnitPair {
  const void* weight;
  void* grad;
  int64_t units;
  int64_t size;
  DType dtype;
};

struct UnitRule {
  double clipping, eps;
};

// Whether the kernel takes the pair: of a dtype whose squares float64 holds, with units of up to
// 2^28 elements, and with no more units than 32 bits count.
bool takes_units(const UnitPair& pair);

// Scales each unit of each gradient whose norm is over clipping * max(|w|, eps), by that limit over
// max(|g|, 1e-6); NaN stays. The gradients share no memory. One launch for each 1361 pairs, for
// each 167 where the driver is older than CUDA 12.1. Same pairs: same bits.
void clip_units(const std::vector<UnitPair>& pairs, UnitRule rule, Queue queue);

}  // namespace fastclip::cuda
