#include "tensors/tensor_list.h"

#include <algorithm>
#include <cmath>

#include "tensors/python_error.h"

namespace fastclip {
namespace {

constexpr int64_t kChunkBytes =
    256 * 1024;               // a chunk stays in L2 between a first and a second pass
constexpr size_t kAhead = 6;  // tensors whose memory is on its way

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

TensorList::TensorList(PyObject* tensors, bool take_grads) : TensorList() {
  Listing(*this, tensors, take_grads).all();
}

TensorList::~TensorList() {
  for (PyObject* tensor : tensors_) Py_DECREF(tensor);
}

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

void TensorList::reserve(size_t chunks) {
  chunks_.reserve(chunks);
  tasks_.reserve(chunks + 1);
}

// Returns false where the storage of chunks is pinned, and full.
bool TensorList::add(size_t index, bool pinned) {
  const TensorView view = view_of(tensors_[index]);
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
  dtypes_ |= 1u << static_cast<int>(view.dtype);
  has_empty_ |= view.numel == 0;
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
  if (!on_cpu() && has_repeats()) throw Unsupported("a tensor listed twice");
}

Listing::Listing(TensorList& list, PyObject* tensors, bool take_grads)
    : list_(list),
      items_(PySequence_Fast(tensors, "tensors must be a sequence")),
      take_grads_(take_grads) {
  if (items_ == nullptr) throw PythonError{};
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
    Py_DECREF(parameter);
    if (tensor == nullptr) throw PythonError{};
    if (tensor == Py_None) return Py_DECREF(tensor);
    prefetch_pointees(tensor);
  }
  list_.tensors_.push_back(tensor);
}

}  // namespace fastclip
