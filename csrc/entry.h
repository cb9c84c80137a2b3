// What Python calls: arguments are checked here, the GIL is released here, kernels are called here.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "tensor_list.h"

namespace fastclip {

namespace py = pybind11;

// The norm of all elements.
double grad_norm(const TensorList& list, double p);

// The norm of each tensor for each order, into `norms` (float64, [orders, tensors]).
void grad_norms(const TensorList& list, const std::vector<double>& orders, py::handle norms);

void scale_grads(const TensorList& list, double factor);

// Adaptive gradient clipping: (the gradients that were scaled, the parameters left to the
// reference).
py::tuple clip_units(const py::sequence& parameters, double clipping, double eps);

py::list tensors_of(const TensorList& list);

// loss[heads, B, C] (the logits' real type) and sums[heads, B, C, 4] (float64) are written.
void structure_loss_forward(const py::sequence& logits, py::handle mask, py::handle valid,
                            int64_t window, double boundary_weight, double smooth,
                            bool weighted_bce, py::handle loss, py::handle sums);

// total (0-d, the logits' real type) = the sum of factors[head] * loss, and sums as above. With
// `grads` (a tensor or None for each head; float32 logits only) also d total / d logits.
void structure_loss_total(const py::sequence& logits, py::handle mask, py::handle valid,
                          int64_t window, double boundary_weight, double smooth, bool weighted_bce,
                          const std::vector<double>& factors, py::handle total, py::handle sums,
                          const py::sequence& grads);

void structure_loss_backward(py::handle grad_loss, const py::sequence& logits, py::handle mask,
                             py::handle valid, py::handle sums, int64_t window,
                             double boundary_weight, double smooth, bool weighted_bce,
                             const py::sequence& grads);

// {"isa": ..., "threads": ..., "cuda": ...}
py::dict build_info();

}  // namespace fastclip
