#include "tensor_list.h"

#include <algorithm>
#include <cmath>

#include "python_error.h"

namespace fastclip {
namespace {

constexpr int64_t kChunkBytes =
    256 * 1024;                             // a chunk stays in L2 between a first and a second look
constexpr int64_t kTaskBytes = 128 * 1024;  // a task is the least that a thread gets
constexpr int64_t kChunkOverheadBytes = 512;  // what starting a chunk costs, in bytes of reading
constexpr size_t kAhead = 6;                  // tensors whose memory is on its way

// A tensor is a Python object, which holds a pointer to torch's, which is three cache lines: in a
// training step all of them have gone cold. What these words hold is only prefetched.
void prefetch_pointees(PyObject* object) {
  constexpr size_t kWords = 4;
  if (Py_TYPE(object)->tp_basicsize < static_cast<Py_ssize_t>(kWords * sizeof(void*))) return;
  const char* const* words = reinterpret_cast<const char* const*>(object);
  for (size_t w = 2; w < kWords; ++w) {
    for (int line = 0; line < 3; ++line) __builtin_prefetch(words[w] + 64 * line);
  }
}

}  // namespace

TensorList::TensorList(PyObject* tensors, bool take_grads) {
  PyObject* items = PySequence_Fast(tensors, "tensors must be a sequence");
  if (items == nullptr) throw PythonError{};
  try {
    list(items, take_grads);
  } catch (...) {
    Py_DECREF(items);
    release();
    throw;
  }
  Py_DECREF(items);
  if (tasks_.back() != static_cast<int64_t>(chunks_.size())) tasks_.push_back(chunks_.size());
}

TensorList::~TensorList() { release(); }

bool TensorList::has_norm(double p) const {
  const bool has_identity = p > 0 && !std::isinf(p);  // else torch raises for an empty tensor
  return p != 0 && !std::isnan(p) && (has_identity || !has_empty_);
}

bool TensorList::has_repeats() const {
  size_t slots = 16;
  while (slots < 2 * chunks_.size()) slots *= 2;
  std::vector<uintptr_t> seen(slots);
  for (const Chunk& chunk : chunks_) {
    if (chunk.numel == 0) continue;
    const uintptr_t address = reinterpret_cast<uintptr_t>(chunk.data);
    size_t slot = (address >> 4) * 0x9e3779b97f4a7c15ull >> 20 & (slots - 1);
    while (seen[slot] != 0 && seen[slot] != address) slot = (slot + 1) & (slots - 1);
    if (seen[slot] == address) return true;
    seen[slot] = address;
  }
  return false;
}

void TensorList::release() {
  for (PyObject* tensor : tensors_) Py_DECREF(tensor);
  tensors_.clear();
}

// A list may be changed by Python code, which only the `grad` of an odd object runs here: its size
// is asked for each time, and the object held.
void TensorList::list(PyObject* items, bool take_grads) {
  const auto size = [&] { return static_cast<size_t>(PySequence_Fast_GET_SIZE(items)); };
  const auto item = [&](size_t i) { return PySequence_Fast_GET_ITEM(items, i); };
  tensors_.reserve(size());
  chunks_.reserve(size());
  size_t added = 0;
  for (size_t i = 0; i < size(); ++i) {
    if (i + 2 * kAhead < size()) __builtin_prefetch(item(i + 2 * kAhead));
    if (i + kAhead < size()) prefetch_pointees(item(i + kAhead));
    PyObject* tensor = item(i);
    Py_INCREF(tensor);
    if (take_grads) {
      PyObject* parameter = tensor;
      tensor = grad_of(parameter);
      Py_DECREF(parameter);
      if (tensor == nullptr) throw PythonError{};
      if (tensor == Py_None) {
        Py_DECREF(tensor);
        continue;
      }
      prefetch_pointees(tensor);
    }
    tensors_.push_back(tensor);
    if (tensors_.size() > added + kAhead) add(added++);
  }
  while (added < tensors_.size()) add(added++);
  if (!on_cpu() && has_repeats()) throw Unsupported("a tensor listed twice");
}

void TensorList::add(size_t index) {
  const TensorView view = view_of(tensors_[index]);
  const bool on_cpu = view.device.type == dlpack::kCPU || view.device.type == dlpack::kCUDAHost;
  const dlpack::Device device = on_cpu ? dlpack::Device{dlpack::kCPU, 0} : view.device;
  if (index == 0) device_ = device;
  if (device.type != device_.type || device.id != device_.id) {
    throw Unsupported("tensors on several devices");
  }
  if (static_cast<int>(view.dtype) >= kFloatDTypes) throw Unsupported("a tensor of integers");
  if (!view.is_dense()) throw Unsupported("a tensor with gaps or overlaps in its memory");
  dtypes_ |= 1u << static_cast<int>(view.dtype);
  has_empty_ |= view.numel == 0;
  bytes_ += view.numel * item_size(view.dtype);
  if (on_cpu) {
    cut(view, static_cast<int32_t>(index));
  } else {
    chunks_.push_back({view.data, view.numel, view.dtype, static_cast<int32_t>(index)});
  }
}

void TensorList::cut(const TensorView& view, int32_t index) {
  const int64_t size = item_size(view.dtype);
  const int64_t step = kChunkBytes / size;
  for (int64_t start = 0; start < view.numel; start += step) {
    const int64_t numel = std::min(step, view.numel - start);
    Chunk& chunk = chunks_.emplace_back();  // its words are stored where they stay: 3 ns less
    chunk.data = static_cast<char*>(view.data) + start * size;
    chunk.numel = numel;
    chunk.dtype = view.dtype;
    chunk.tensor = index;
    open_task_bytes_ += numel * size + kChunkOverheadBytes;
    if (open_task_bytes_ >= kTaskBytes) {
      tasks_.push_back(chunks_.size());
      open_task_bytes_ = 0;
    }
  }
}

}  // namespace fastclip
