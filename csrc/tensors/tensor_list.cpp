#include "tensors/tensor_list.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "tensors/overlap.h"
#include "tensors/prefetch.h"
#include "tensors/python.h"
#include "tensors/version.h"

namespace fastclip {
namespace {

constexpr int64_t kChunkBytes =
    256 * 1024;               // a chunk stays in L2 between a first and a second pass
constexpr size_t kAhead = 6;  // tensors whose memory is on its way

// Whether this thread is the only one that runs Python, so that no tensor changes while the GIL is
// released.
bool is_alone() {
#ifdef Py_GIL_DISABLED  // nothing keeps the threads that this would walk over
  return false;
#else
  return PyThreadState_Next(PyInterpreterState_ThreadHead(PyInterpreterState_Get())) == nullptr;
#endif
}

// A new reference to a sequence that PySequence_Fast's macros read. Under the GIL only Python code
// that runs here changes a list meanwhile, without it any thread does: then it is copied.
PyObject* items_of(PyObject* tensors) {
#ifdef Py_GIL_DISABLED
  return PySequence_Tuple(tensors);
#else
  return PySequence_Fast(tensors, "tensors must be a sequence");
#endif
}

TensorView listed(PyObject* tensor, size_t index) {
  try {
    return view_of(tensor);
  } catch (const NoMemory& error) {
    throw NoMemory("tensor " + std::to_string(index) + " of the list " + error.what());
  }
}

}  // namespace

bool may_lie_elsewhere(PyObject* parameter) {
  if (is_plain(parameter)) return false;
  PyObject* trained = PyObject_GetAttr(parameter, names().requires_grad);
  if (trained == nullptr) PyErr_Clear();  // no tensor: whatever has a gradient of None
  Py_XDECREF(trained);
  return trained == Py_True;
}

TensorList::TensorList(PyObject* tensors, bool take_grads) : TensorList() {
  Listing(*this, tensors, take_grads).all();
}

TensorList::~TensorList() {
  for (PyObject* tensor : tensors_) Py_DECREF(tensor);
  for (PyObject* storage : storages_) Py_DECREF(storage);
}

void TensorList::keep_memory() {
  if (keeps_memory_ || !on_cpu() || is_alone()) return;
  keeps_memory_ = true;
  for (PyObject* tensor : tensors_) keep_memory_of(tensor);
}

void TensorList::keep_memory_of(PyObject* tensor) { storages_.push_back(storage_of(tensor)); }

bool TensorList::has_norm(double p) const {
  const bool has_identity = p > 0 && !std::isinf(p);  // else torch raises for an empty tensor
  return p != 0 && !std::isnan(p) && (has_identity || !has_empty_);
}

bool TensorList::has_overlaps() const {
  std::vector<Range> ranges;
  ranges.reserve(tensors_.size());
  int32_t tensor = -1;
  for (const Chunk& chunk : chunks_) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(chunk.data);
    const uintptr_t end = begin + chunk.numel * item_size(chunk.dtype);
    if (chunk.tensor == tensor) {
      ranges.back().end = end;
    } else {
      ranges.push_back({begin, end});
      tensor = chunk.tensor;
    }
  }
  return any_overlap(ranges);
}

void TensorList::require_writable() const {
  if (!may_hold_inference_) return;
  for (PyObject* tensor : tensors_) fastclip::require_writable(tensor);
}

bool TensorList::is_stale() const {
  size_t c = 0;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorView view = view_of(tensors_[i]);
    const size_t first = c;
    int64_t numel = 0;
    for (; c < chunks_.size() && chunks_[c].tensor == static_cast<int32_t>(i); ++c) {
      if (chunks_[c].dtype != view.dtype) return true;
      numel += chunks_[c].numel;
    }
    if (numel != view.numel || !view.is_dense()) return true;
    if (numel != 0 && chunks_[first].data != view.data) return true;
  }
  return false;
}

bool TensorList::refresh() {
  if (!is_stale()) return false;
  chunks_.clear();
  tasks_.assign(1, 0);
  open_task_bytes_ = bytes_ = 0;
  dtypes_ = 0;
  has_empty_ = false;
  for (size_t i = 0; i < tensors_.size(); ++i) add(i, false);
  close();
  return true;
}

void TensorList::reserve(size_t chunks) {
  chunks_.reserve(chunks);
  tasks_.reserve(chunks + 1);
}

// Returns false where the storage of chunks is pinned, and full.
bool TensorList::add(size_t index, bool pinned) {
  const TensorView view = listed(tensors_[index], index);
  const bool on_cpu = view.device.type == dlpack::kCPU || view.device.type == dlpack::kCUDAHost;
  const dlpack::Device device = on_cpu ? dlpack::Device{dlpack::kCPU, 0} : view.device;
  if (index == 0) device_ = device;
  if (device.type != device_.type || device.id != device_.id) {
    throw Unsupported("tensors on several devices");
  }
  if (static_cast<int>(view.dtype) >= kFloatDTypes) throw Unsupported("a tensor of integers");
  if (!view.is_dense()) throw Unsupported("a tensor with gaps or overlaps in its memory");
  const int64_t bytes = view.numel * item_size(view.dtype);
  const size_t most = static_cast<size_t>(bytes / kChunkBytes) + 1;
  if (pinned && chunks_.size() + most > chunks_.capacity()) return false;
  if (keeps_memory_ && on_cpu) keep_memory_of(tensors_[index]);
  dtypes_ |= 1u << static_cast<int>(view.dtype);
  has_empty_ |= view.numel == 0;
  may_hold_inference_ |= may_be_inference(tensors_[index]);
  bytes_ += bytes;
  if (on_cpu) {
    cut(view, static_cast<int32_t>(index));
  } else {
    chunks_.push_back({view.data, view.numel, view.dtype, static_cast<int32_t>(index)});
  }
  return true;
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

void TensorList::close() {
  if (tasks_.back() != static_cast<int64_t>(chunks_.size())) tasks_.push_back(chunks_.size());
  if (!on_cpu() && has_overlaps()) throw Unsupported("tensors that share memory");
}

void require_memory(PyObject* tensors, bool take_grads) {
  PyObject* items = PySequence_Tuple(tensors);
  if (items == nullptr) throw PythonError{};
  const std::unique_ptr<PyObject, void (*)(PyObject*)> held(items,
                                                            [](PyObject* o) { Py_DECREF(o); });
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items); ++i) {
    PyObject* tensor = PyTuple_GET_ITEM(items, i);
    PyObject* grad = take_grads ? grad_of(tensor) : nullptr;
    if (take_grads && grad == nullptr) throw PythonError{};
    const std::unique_ptr<PyObject, void (*)(PyObject*)> kept(grad,
                                                              [](PyObject* o) { Py_XDECREF(o); });
    try {
      listed(take_grads ? grad : tensor, i);
    } catch (const Unsupported&) {  // whatever it is, it is torch's
    }
  }
}

Listing::Listing(TensorList& list, PyObject* tensors, bool take_grads)
    : list_(list), items_(items_of(tensors)), take_grads_(take_grads) {
  if (items_ == nullptr) throw PythonError{};
  list_.keeps_memory_ = !is_alone();
  list_.tensors_.reserve(size());
  list_.chunks_.reserve(size());
}

Listing::~Listing() { Py_DECREF(items_); }

// A list may be changed by Python code, which only the `grad` of an odd object runs here: its size
// is asked for each time, and the object held.
size_t Listing::size() const { return static_cast<size_t>(PySequence_Fast_GET_SIZE(items_)); }

void Listing::all() { more(static_cast<size_t>(-1), false); }

bool Listing::more(size_t count, bool pinned) {
  const auto item = [&](size_t i) { return PySequence_Fast_GET_ITEM(items_, i); };
  for (; count > 0 && next_ < size(); --count, ++next_) {
    if (next_ + 2 * kAhead < size()) __builtin_prefetch(item(next_ + 2 * kAhead));
    if (next_ + kAhead < size()) prefetch_pointees(item(next_ + kAhead));
    take(item(next_));
    if (list_.tensors_.size() <= added_ + kAhead) continue;
    if (!list_.add(added_, pinned)) return ++next_, false;
    ++added_;
  }
  if (next_ < size()) return true;
  for (; added_ < list_.tensors_.size(); ++added_) {
    if (!list_.add(added_, pinned)) return false;
  }
  if (!closed_) list_.close();
  closed_ = true;
  return false;
}

void Listing::take(PyObject* tensor) {
  Py_INCREF(tensor);
  if (take_grads_) {
    PyObject* parameter = tensor;
    tensor = grad_of(parameter);
    const bool awaited = tensor == Py_None && may_lie_elsewhere(parameter);
    Py_DECREF(parameter);
    if (tensor == nullptr) throw PythonError{};
    if (awaited) {
      Py_DECREF(tensor);
      throw Unsupported("a gradient that other ranks may have");
    }
    if (tensor == Py_None) return Py_DECREF(tensor);
    prefetch_pointees(tensor);
  }
  list_.tensors_.push_back(tensor);
}

}  // namespace fastclip
