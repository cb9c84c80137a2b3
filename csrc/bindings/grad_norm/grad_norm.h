// Gradient norms and clipping on the CPU as Python calls them.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

#include "tensors/tensor_list.h"

namespace fastclip {

namespace py = pybind11;

py::list tensors_of(const TensorList& list);

// Each of these reads or writes what the tensors hold by now, as torch does: their memory may have
// been changed since they were listed.

// The norm of all elements.
double grad_norm(TensorList& list, double p);

// The norm of each tensor for each order, into `norms` (float64, [orders, tensors]).
void grad_norms(TensorList& list, const std::vector<double>& orders, py::handle norms,
                py::handle stats);

// Scales whatever the factor is, and moves the tensors' versions.
void scale_grads(TensorList& list, double factor);

// Each tensor by a factor of its own (float64, [tensors]); moves the versions of those it writes.
void scale_each(TensorList& list, py::handle factors);

// Lists, measures and, with a `max_norm`, clips: the norm as a tensor. In one call, since a call's
// Python has gone cold from one training step to the next, and then takes 40 us. Where this is not
// all that is to be done, or not here, the list: no tensors, or on another device, an order that is
// torch's, and with `finite` a norm that its dtype rounds to one that is not.
py::object clip_grads(py::handle tensors, bool take_grads, double p, std::optional<double> max_norm,
                      bool finite);

}  // namespace fastclip
