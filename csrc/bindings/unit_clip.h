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

// The same by the CUDA kernel, queued on torch's current streams, of parameters on CUDA devices;
// waits for none. `why_not` is called with a device's index, and returns why its pairs are left to
// others, or an empty string. All gradients that the kernel reads count as scaled: only the device
// knows which are.
py::tuple cuda_clip_units(const py::sequence& parameters, double clipping, double eps,
                          const py::function& why_not);

}  // namespace fastclip
