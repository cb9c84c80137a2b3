// What adaptive clipping takes for a unit: what one index of the first dimension selects; a tensor
// of fewer than two dimensions is one.
#pragma once

#include <cstdint>

#include "tensors/tensor_view.h"

namespace fastclip {

inline int64_t units_of(const TensorView& view) { return view.ndim > 1 ? view.shape[0] : 1; }

// Whether they are of one floating dtype and one shape, and elements of unit u lie, in any order,
// at data[u * size .. (u + 1) * size) of each.
bool have_whole_units(const TensorView& weight, const TensorView& grad);

}  // namespace fastclip
