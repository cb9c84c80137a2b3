// What Python calls lies in bindings/<op>.cpp: arguments are checked there, the GIL is released
// there, kernels are called there. This is what they share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "tensors/tensor_view.h"

namespace fastclip {

namespace py = pybind11;

// ValueError with this message unless the condition holds.
void require(bool condition, const std::string& message);

// A contiguous tensor on the CPU.
TensorView cpu_view(py::handle object, const char* name);

// That, of this dtype and size.
TensorView numbers(py::handle object, const char* name, DType dtype, int64_t numel);

// {"isa": ..., "cuda": ...}
py::dict build_info();

}  // namespace fastclip
