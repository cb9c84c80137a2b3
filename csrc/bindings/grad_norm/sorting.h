// Lists of DTensors and plain tensors, sorted by device and by how they are spread over ranks.
#pragma once

#include <pybind11/pybind11.h>

namespace fastclip {

namespace py = pybind11;

// Sorts tensors (with `take_grads` the gradients of parameters; None is skipped) into groups of one
// device, one mesh and one tuple of placements. Reads each DTensor's attributes anew at each call.
//
// `dtensor` is torch's DTensor class, or None where there is none yet. A parameter that is a
// DTensor and lacks a gradient, which another rank may have, opens the group of its own layout.
//
// Returns (groups, freed, error). A group is (mesh or None, placements or None, indices in the
// list, tensors, their local tensors, rows without elements, DType bits, the parameters that
// lack a gradient); DType bits of 0 say that Python must look at these local tensors itself.
// `freed` has the indices of those whose storage was freed, and `error` the first one's text, or
// None.
py::tuple sort_tensors(py::handle tensors, bool take_grads, py::handle dtensor);

}  // namespace fastclip
