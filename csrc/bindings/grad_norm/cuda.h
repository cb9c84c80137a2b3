// What Python calls for tensors on a CUDA device. A build without CUDA has these too, and throws.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "tensors/tensor_list.h"

namespace fastclip {

namespace py = pybind11;

// (DLPack device type, index)
py::tuple device_of(const TensorList& list);

// (address, elements, DType) of each tensor, as bytes of int64: what a Triton kernel reads.
py::bytes addresses_of(const TensorList& list);

// Why the CUDA kernels cannot run on this device, or an empty string.
std::string cuda_why_not(int device);

// How many float64 the `work` of a call must hold.
int64_t cuda_work_size(const TensorList& list);

// Queues the norm, and with `scale` the scaling, on torch's current stream; waits for neither.
// `work`[1] becomes the norm and `work`[2] the factor; `total` and `per_tensor` (float64) may be
// None. Orders other than 1, 2 and +-infinity have `per_tensor` alone; `units` (float64, or None)
// is what the elements of each tensor are divided by before they are raised to p.
void cuda_grad_norm(TensorList& list, double p, double max_norm, bool scale, py::handle work,
                    py::handle total, py::handle per_tensor, py::handle units);

// Multiplies by min(1, max_norm / (norm + 1e-6)); `norm` is a number, or a tensor of one number on
// the list's device.
void cuda_scale_grads(TensorList& list, double max_norm, py::handle norm);

// Multiplies by a number, or by a tensor of one number on the list's device.
void cuda_multiply(TensorList& list, py::handle factor);

// Multiplies each tensor by its factor (float64, on the list's device); those of 1 stay unwritten.
void cuda_scale_each(TensorList& list, py::handle factors);

// Clamps every element to [-limit, limit].
void cuda_clamp(TensorList& list, double limit);

}  // namespace fastclip
