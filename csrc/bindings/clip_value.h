// Clipping by value as Python calls it.
#pragma once

#include <pybind11/pybind11.h>

namespace fastclip {

namespace py = pybind11;

// Clamps the parameters' gradients to [-limit, limit]; returns those that were written. Unsupported
// where torch's own function is to do it: another device, a limit that is NaN, negative, or past
// the range of a gradient's dtype.
py::list clip_values(py::handle parameters, double limit);

}  // namespace fastclip
