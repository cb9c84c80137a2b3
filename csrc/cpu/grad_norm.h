// Norms of tensor lists and their scaling, on CPU threads.
#pragma once

#include <cstdint>

#include "../tensor_list.h"

namespace fastclip::cpu {

// The norm of every tensor of the list, into per_tensor[0 .. tensors); returns the norm of those.
// `p` is any real but 0 and NaN, or +-infinity. Sums are taken in a fixed order, so the result does
// not depend on the number of threads. Values whose powers leave their dtype's range are summed
// again in a wider one.
double grad_norm(const TensorList& list, double p, double* per_tensor);

// Multiplies every element by `factor`; computed in float32 (float64 for float64).
void scale_grads(const TensorList& list, double factor);

}  // namespace fastclip::cpu
