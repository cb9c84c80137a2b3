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
int64_t cuda_work_size(const TensorList& list, bool per_tensor);

// Queues the norm, and with `scale` the scaling, on torch's current stream; waits for neither.
// `work`[1] becomes the norm and `work`[2] the factor; `total`, `per_tensor` (float64) and
// `optimizer` (float32 [2]: 1 / factor, whether the norm is not finite) may be None.
void cuda_grad_norm(TensorList& list, double p, double max_norm, bool scale, py::handle work,
                    py::handle total, py::handle per_tensor, py::handle optimizer);

// `norm` is a number, or a tensor of one number on the list's device.
void cuda_scale_grads(TensorList& list, double max_norm, py::handle norm);

}  // namespace fastclip
