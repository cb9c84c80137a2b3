// Plain data that kernels on every device read: no Python, no std.
#pragma once

#include <stdint.h>

namespace fastclip {

enum class DType : int32_t { kF32, kF64, kBF16, kF16, kU8, kBool };
constexpr int kFloatDTypes = 4;  // the first four are what gradients and logits may be

// A run of consecutive elements of one tensor of a list.
struct Chunk {
  void* data;
  int64_t numel;
  DType dtype;
  int32_t tensor;  // index in the list
};

}  // namespace fastclip
