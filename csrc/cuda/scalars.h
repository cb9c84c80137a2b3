// Single numbers on the device: of any dtype, and the factor of a clip.
#pragma once

#include "cuda/grad_norm.h"
#include "cuda/numbers.h"

namespace fastclip::cuda {

__device__ inline double factor_of(double max_norm, double norm) {
  const double factor = max_norm / (norm + kEps);
  return factor >= 1 ? 1 : factor;  // NaN stays, and makes every gradient NaN
}

__device__ inline double load_number(const void* data, DType dtype) {
  switch (dtype) {
    case DType::kF32: return *static_cast<const float*>(data);
    case DType::kF64: return *static_cast<const double*>(data);
    case DType::kBF16: return BF16::real(*static_cast<const uint16_t*>(data));
    default: return F16::real(*static_cast<const uint16_t*>(data));
  }
}

__device__ inline void store_number(void* data, DType dtype, double x) {
  switch (dtype) {
    case DType::kF32: *static_cast<float*>(data) = static_cast<float>(x); break;
    case DType::kF64: *static_cast<double*>(data) = x; break;
    case DType::kBF16: *static_cast<uint16_t*>(data) = BF16::bits(static_cast<float>(x)); break;
    default: *static_cast<uint16_t*>(data) = F16::bits(static_cast<float>(x));
  }
}

}  // namespace fastclip::cuda
