// The version counters of torch's tensors, by which autograd sees that one was written, and which
// tensors made under inference_mode do not have.
#pragma once

#include <Python.h>

namespace fastclip {

// Tells this module torch's increment_version(tensors), and some tensors (lists) that were made
// under inference_mode and that were not. Called once, after bind_torch.
void bind_versions(PyObject* tensor_type, PyObject* increment_version, PyObject* inference,
                   PyObject* normal);

// Whether the plain tensor was made under inference_mode. Now and then true of another too.
bool may_be_inference(PyObject* tensor);

// Raises torch's error where the tensor was made under inference_mode and that has ended.
void require_writable(PyObject* tensor);

// Moves the versions of these tensors (a list), so that autograd sees that they were written.
void mark_written(PyObject* tensors);

}  // namespace fastclip
