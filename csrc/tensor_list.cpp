#include "tensor_list.h"

#include <algorithm>

#include "python_error.h"

namespace fastclip {
namespace {

constexpr int64_t kChunkBytes = 64 * 1024;  // a chunk stays in L2 between a first and a second look
constexpr int64_t kTaskBytes = 64 * 1024;   // a task is worth a thread's trip to the queue
constexpr int64_t kChunkOverheadBytes = 512;  // what starting a chunk costs, in bytes of reading

}  // namespace

TensorList::TensorList(PyObject* tensors, bool take_grads) {
  static PyObject* const grad_name = PyUnicode_InternFromString("grad");
  PyObject* items = PySequence_Tuple(tensors);  // a snapshot: other threads may change a list
  if (items == nullptr) throw PythonError{};
  try {
    const Py_ssize_t count = PyTuple_GET_SIZE(items);
    tensors_.reserve(count);
    chunks_.reserve(count);
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* tensor = PyTuple_GET_ITEM(items, i);
      if (take_grads) {
        tensor = PyObject_GetAttr(tensor, grad_name);
        if (tensor == nullptr) throw PythonError{};
        if (tensor == Py_None) {
          Py_DECREF(tensor);
          continue;
        }
      } else {
        Py_INCREF(tensor);
      }
      tensors_.push_back(tensor);
      add(tensor);
    }
  } catch (...) {
    Py_DECREF(items);
    release();
    throw;
  }
  Py_DECREF(items);
  if (tasks_.back() != static_cast<int64_t>(chunks_.size())) tasks_.push_back(chunks_.size());
}

TensorList::~TensorList() { release(); }

void TensorList::release() {
  for (PyObject* tensor : tensors_) Py_DECREF(tensor);
  tensors_.clear();
}

void TensorList::add(PyObject* tensor) {
  const TensorView view = view_of(tensor);
  if (view.device.type != dlpack::kCPU && view.device.type != dlpack::kCUDAHost) {
    throw Unsupported("a tensor that is not on the CPU");
  }
  if (static_cast<int>(view.dtype) >= kFloatDTypes) throw Unsupported("a tensor of integers");
  if (!view.is_dense()) throw Unsupported("a tensor with gaps or overlaps in its memory");
  dtypes_ |= 1u << static_cast<int>(view.dtype);
  has_empty_ |= view.numel == 0;
  cut(view, static_cast<int32_t>(tensors_.size()) - 1);
}

void TensorList::cut(const TensorView& view, int32_t index) {
  const int64_t size = item_size(view.dtype);
  const int64_t step = kChunkBytes / size;
  for (int64_t start = 0; start < view.numel; start += step) {
    const int64_t numel = std::min(step, view.numel - start);
    chunks_.push_back({static_cast<char*>(view.data) + start * size, numel, view.dtype, index});
    open_task_bytes_ += numel * size + kChunkOverheadBytes;
    if (open_task_bytes_ >= kTaskBytes) {
      tasks_.push_back(chunks_.size());
      open_task_bytes_ = 0;
    }
  }
}

}  // namespace fastclip
