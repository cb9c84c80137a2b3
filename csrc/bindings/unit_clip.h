// Adaptive gradient clipping as Python calls it.
#pragma once

#include <pybind11/pybind11.h>

namespace fastclip {

namespace py = pybind11;

// Clips the gradients of parameters, or `grads`, one for each, where that is not None. Returns (the
// gradients that were scaled, the parameters left to do: what no kernel takes, and those whose
// gradient other ranks may have). Where some are left, `check` (or None) is called with the
// parameters before anything is written; what it raises is passed on.
py::tuple clip_units(const py::sequence& parameters, double clipping, double eps,
                     const py::object& grads, const py::object& check);

}  // namespace fastclip
