// The structure loss as Python calls it.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace fastclip {

namespace py = pybind11;

// loss[heads, B, C] (the logits' real type) and sums[heads, B, C, 4] (float64) are written.
void structure_loss_forward(const py::sequence& logits, py::handle mask, py::handle valid,
                            int64_t window, double boundary_weight, double smooth,
                            bool weighted_bce, py::handle loss, py::handle sums);

// The sum of factors[head] * loss as a new tensor (0-d, the logits' real type), and unless it is
// None, sums as above. With `grads` (a tensor or None for each head; float32 logits only) also d
// total / d logits.
py::object structure_loss_total(const py::sequence& logits, py::handle mask, py::handle valid,
                                int64_t window, double boundary_weight, double smooth,
                                bool weighted_bce, const std::vector<double>& factors,
                                py::handle sums, const py::sequence& grads);

void structure_loss_backward(py::handle grad_loss, const py::sequence& logits, py::handle mask,
                             py::handle valid, py::handle sums, int64_t window,
                             double boundary_weight, double smooth, bool weighted_bce,
                             const py::sequence& grads);

}  // namespace fastclip
