// Clipping by value as Python calls it.
#pragma once

#include <pybind11/pybind11.h>

#include "tensors/tensor_list.h"

namespace fastclip {

namespace py = pybind11;

// Whether the limit is a number in the range of every dtype of the list, or infinite.
bool limit_fits(double limit, const TensorList& list);

// Clamps tensors (with `take_grads` the gradients of parameters) to [-limit, limit]; returns those
// that were written. Unsupported where torch's own function is to do it: another device, a limit
// that is NaN, negative, or past the range of a gradient's dtype.
py::list clip_values(py::handle tensors, double limit, bool take_grads);

}  // namespace fastclip
