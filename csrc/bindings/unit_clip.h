// Adaptive gradient clipping as Python calls it.
#pragma once

#include <pybind11/pybind11.h>

namespace fastclip {

namespace py = pybind11;

// (the gradients that were scaled, the parameters left to the reference)
py::tuple clip_units(const py::sequence& parameters, double clipping, double eps);

}  // namespace fastclip
