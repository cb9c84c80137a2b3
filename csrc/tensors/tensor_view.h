// A borrowed view of one torch tensor: pointer, dtype, shape, strides, device. No torch header.
#pragma once

#include <Python.h>

#include <cstdint>
#include <stdexcept>

#include "tensors/chunk.h"
#include "tensors/dlpack.h"

namespace fastclip {

constexpr int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::kF64: return 8;
    case DType::kF32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    default: return 1;
  }
}

// This tensor goes to the reference; Python sees it as fastclip._native.Unsupported.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Elements that lie nowhere: a tensor whose storage was freed. Python sees a ValueError.
struct NoMemory : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct TensorView {
  void* data;
  DType dtype;
  dlpack::Device device;
  int32_t ndim;
  const int64_t* shape;    // owned by the tensor
  const int64_t* strides;  // in elements, owned by the tensor
  int64_t numel;

  // Row-major without gaps: element i lies at data[i].
  bool is_contiguous() const;
  // Some permutation of the dimensions is contiguous, so the elements fill data[0 .. numel).
  bool is_dense() const;
};

// Tells this module which Python types are plain tensors. Called once, by fastclip's Python side.
void bind_torch(PyObject* tensor_type, PyObject* parameter_type);

// Whether it is an exact torch.Tensor or nn.Parameter.
bool is_plain(PyObject* object);

// A new reference to object.grad, or null with the Python exception set. For a plain tensor torch's
// getter is called without the attribute's look-up: a third of the time of a thousand gradients.
PyObject* grad_of(PyObject* object);

// Views an exact torch.Tensor or nn.Parameter. Throws Unsupported for subclasses, layouts without
// storage (sparse, meta), zeros without memory (autograd's ZeroTensor) and dtypes that no kernel
// reads, NoMemory where the storage was freed. The view is valid while `object` lives and keeps its
// storage.
TensorView view_of(PyObject* object);

// A new reference to the plain tensor's storage, which keeps its memory.
PyObject* storage_of(PyObject* tensor);

// Whether a number stays finite when torch rounds it to a real dtype.
bool stays_finite(double value, DType dtype);

// A new CPU tensor, 0-d, of a real dtype. torch.scalar_tensor takes 15 us more when cold.
PyObject* new_number(double value, DType dtype);

// The stream that torch queues work on now, for this device and thread.
void* current_stream(dlpack::Device device);

}  // namespace fastclip
