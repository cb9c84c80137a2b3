// Tensor lists clamped element by element, on CPU threads.
#pragma once

#include <vector>

#include "tensors/tensor_list.h"

namespace fastclip::cpu {

// Clamps every element to [-limit, limit], limit >= 0. Returns for each tensor whether it was
// written.
std::vector<bool> clip_values(const TensorList& list, double limit);

}  // namespace fastclip::cpu
