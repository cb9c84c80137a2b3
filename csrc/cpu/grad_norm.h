// Norms of tensor lists and their scaling, on CPU threads.
#pragma once

#include <cstdint>
#include <vector>

#include "../tensor_list.h"

namespace fastclip::cpu {

constexpr double kEps = 1e-6;  // torch's: what is added to a norm that divides

// For each order p: the norm of every tensor into per_tensor[p][tensor], unless it is null, and the
// norm of those into total[p]. An order is any real but 0 and NaN, or +-infinity. Sums are taken in
// a fixed order, so no result depends on the number of threads. Values whose powers leave their
// dtype's range are summed again in a wider one.
void grad_norm(const TensorList& list, const std::vector<double>& orders, double* total,
               double* per_tensor);

// Multiplies every element by `factor`; computed in float32 (float64 for float64).
void scale_grads(const TensorList& list, double factor);

}  // namespace fastclip::cpu
