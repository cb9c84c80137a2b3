// Adaptive gradient clipping as Python calls it.
#pragma once

#include <pybind11/pybind11.h>

namespace fastclip {

namespace py = pybind11;

// (the gradients that were scaled, the parameters left to do: among them those of whose gradients
// other ranks may have some)
// `grads` has a gradient for each, or is None: then they are the parameters' own.
py::tuple clip_units(const py::sequence& parameters, double clipping, double eps,
                     const py::object& grads);

}  // namespace fastclip
