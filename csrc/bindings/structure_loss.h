// The structure loss as Python calls it.
#pragma once

#include <pybind11/pybind11.h>

namespace fastclip {

// Defines structure_loss_forward, _total and _backward; their signatures stand in _native.pyi.
void bind_structure_loss(pybind11::module_& m);

}  // namespace fastclip
