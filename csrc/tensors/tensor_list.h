// A list of tensors cut into chunks of bounded size: what every multi-tensor kernel walks.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "tensors/chunk.h"
#include "tensors/tensor_view.h"

namespace fastclip {

constexpr int64_t kTaskBytes = 128 * 1024;    // a task is the least that a thread gets
constexpr int64_t kChunkOverheadBytes = 512;  // what starting a chunk costs, in bytes of reading

class TensorList {
 public:
  // `tensors` is any sequence of tensors; with `take_grads` of parameters, whose gradients are
  // taken and None skipped. Holds a reference to each, so none is freed while a kernel runs.
  // Throws Unsupported where they are not all on one device, or one is not for the kernels.
  TensorList(PyObject* tensors, bool take_grads);
  // Empty, for a Listing to fill.
  TensorList() = default;
  ~TensorList();
  TensorList(const TensorList&) = delete;
  TensorList& operator=(const TensorList&) = delete;

  const std::vector<PyObject*>& tensors() const { return tensors_; }
  // On other devices than the CPU: one chunk for each tensor, empty ones too.
  const std::vector<Chunk>& chunks() const { return chunks_; }
  dlpack::Device device() const { return device_; }
  bool on_cpu() const { return device_.type == dlpack::kCPU; }
  // Chunks task[i] .. task[i + 1] are one unit of work for a thread; bounded below in bytes, so
  // that ten thousand tiny tensors do not become ten thousand units.
  const std::vector<int64_t>& tasks() const { return tasks_; }
  // Bit DType of each dtype present.
  uint32_t dtypes() const { return dtypes_; }
  // Whether the kernels define the norm of order p for these tensors as torch does.
  bool has_norm(double p) const;
  int64_t bytes() const { return bytes_; }
  // Whether two tensors share memory: scaled at the same time, one product would be lost.
  bool has_overlaps() const;

  // Keeps the tensors' memory as long as this lives, whatever is done to them, where other threads
  // run Python: `.data =` in one of them frees what a kernel reads. It takes some 50 ns a tensor.
  void keep_memory();
  // Before a use some time after the listing: takes memory that other code has given a tensor since
  // (`.data =`, set_) in the place of what it had, which may be freed. Returns whether there is
  // any.
  bool refresh();
  // Raises torch's error where a tensor was made under inference_mode and that has ended.
  void require_writable() const;

  // Makes room for so many chunks: until they are more, the storage of chunks and tasks stays.
  void reserve(size_t chunks);
  size_t room() const { return chunks_.capacity(); }

 private:
  friend class Listing;
  bool add(size_t index, bool pinned);
  bool is_stale() const;
  void keep_memory_of(PyObject* tensor);
  void cut(const TensorView& view, int32_t index);
  void close();

  std::vector<PyObject*> tensors_;
  std::vector<PyObject*> storages_;
  bool keeps_memory_ = false;
  std::vector<Chunk> chunks_;
  std::vector<int64_t> tasks_{0};
  int64_t open_task_bytes_ = 0;
  int64_t bytes_ = 0;
  uint32_t dtypes_ = 0;
  bool has_empty_ = false;
  bool may_hold_inference_ = false;
  dlpack::Device device_{dlpack::kCPU, 0};
};

// Whether other ranks may have a gradient of this parameter, which has none here, and wait for this
// rank: a DTensor that is trained. Python sorts out which subclass it is.
bool may_lie_elsewhere(PyObject* parameter);

// Throws NoMemory where a tensor of the sequence, or with `take_grads` a gradient, was freed:
// before torch, which would read it, has a list that is not for kernels.
void require_memory(PyObject* tensors, bool take_grads);

// The making of a list, step by step: what is listed so far can be read already.
class Listing {
 public:
  // Arguments and errors are TensorList's.
  Listing(TensorList& list, PyObject* tensors, bool take_grads);
  ~Listing();
  Listing(const Listing&) = delete;
  Listing& operator=(const Listing&) = delete;

  // How many there are to list, by the sequence's present length.
  size_t size() const;
  // Lists up to `count` more. Returns false when all are listed, or where the storage of chunks and
  // tasks is `pinned` and the next tensor does not fit.
  bool more(size_t count, bool pinned);
  void all();

 private:
  void take(PyObject* tensor);

  TensorList& list_;
  PyObject* const items_;
  const bool take_grads_;
  size_t next_ = 0;   // item to take
  size_t added_ = 0;  // tensors whose chunks are listed: some steps behind, while memory comes
  bool closed_ = false;
};

}  // namespace fastclip
