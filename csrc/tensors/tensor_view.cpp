#include "tensors/tensor_view.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>

#if defined(__linux__)
#include <unistd.h>
#endif

#include "cpu/vector/simd.h"
#include "tensors/python.h"

namespace fastclip {
namespace {

const dlpack::ExchangeApi* g_api = nullptr;
PyTypeObject* g_tensor_type = nullptr;
PyTypeObject* g_parameter_type = nullptr;
PyGetSetDef* g_grad = nullptr;     // of TensorBase, unless Python code has put another in its way
PyMethodDef* g_storage = nullptr;  // likewise, untyped_storage()

DType dtype_of(dlpack::DataType dtype) {
  if (dtype.lanes == 1) {
    if (dtype.code == dlpack::kFloat && dtype.bits == 32) return DType::kF32;
    if (dtype.code == dlpack::kFloat && dtype.bits == 64) return DType::kF64;
    if (dtype.code == dlpack::kFloat && dtype.bits == 16) return DType::kF16;
    if (dtype.code == dlpack::kBfloat && dtype.bits == 16) return DType::kBF16;
    if (dtype.code == dlpack::kUInt && dtype.bits == 8) return DType::kU8;
    if (dtype.code == dlpack::kBool && dtype.bits == 8) return DType::kBool;
  }
  throw Unsupported("a dtype that no kernel reads");
}

// An address under this comes of a null pointer and an offset, not of an allocator. Where a process
// that lies at fixed addresses has its heap far down, fewer such pointers are recognised.
uintptr_t lowest_address(dlpack::DeviceType device) {
#if defined(__linux__)
  static const bool low_heap = reinterpret_cast<uintptr_t>(sbrk(0)) < (uintptr_t{1} << 40);
#else
  constexpr bool low_heap = true;
#endif
  if (device != dlpack::kCPU) return uintptr_t{1} << 32;
  return uintptr_t{1} << (low_heap ? 22 : 40);
}

// Throws where elements have no memory, which an odd address lets one suspect.
void require_memory(PyObject* object, const dlpack::Tensor& tensor) {
  if (integer_of(PyObject_CallMethod(object, "_is_zerotensor", nullptr)) != 0) {
    throw Unsupported("a tensor of zeros without memory (clone() gives it some)");
  }
  PyObject* storage = storage_of(object);
  const int64_t bytes = integer_of(PyObject_CallMethod(storage, "nbytes", nullptr));
  Py_DECREF(storage);
  int64_t last = 0;
  for (int32_t d = 0; d < tensor.ndim; ++d) last += (tensor.shape[d] - 1) * tensor.strides[d];
  const int64_t least = (last + 1) * tensor.dtype.bits * tensor.dtype.lanes / 8;
  if (bytes < least) {
    throw NoMemory("needs " + std::to_string(least) + " bytes, but its storage holds " +
                   std::to_string(bytes) +
                   ": it was freed (untyped_storage().resize_(0), as sharding does between steps);"
                   " give it its memory back, or leave this tensor out");
  }
  if (tensor.data == nullptr) throw Unsupported("a tensor without plain storage");
}

// What a tensor of one number owns.
struct Number {
  dlpack::ManagedTensor managed;
  alignas(double) char value[sizeof(double)];
};

// Rounds as torch does: to float32, and from there to the half precisions.
template <class Half>
void store_half(float value, char* to) {
  Half rounded[cpu::kLanes];
  cpu::store(rounded, cpu::splat(value));
  memcpy(to, rounded, sizeof(Half));
}

// Returns how torch calls the dtype.
dlpack::DataType store_number(double value, DType dtype, char* to) {
  const float single = static_cast<float>(value);
  switch (dtype) {
    case DType::kF64: memcpy(to, &value, sizeof(value)); return {dlpack::kFloat, 64, 1};
    case DType::kF32: memcpy(to, &single, sizeof(single)); return {dlpack::kFloat, 32, 1};
    case DType::kBF16: store_half<cpu::bfloat_t>(single, to); return {dlpack::kBfloat, 16, 1};
    case DType::kF16: store_half<cpu::half_t>(single, to); return {dlpack::kFloat, 16, 1};
    default: throw std::invalid_argument("a number must have a real dtype");
  }
}

}  // namespace

void bind_torch(PyObject* tensor_type, PyObject* parameter_type) {
  PyObject* capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
  if (capsule == nullptr) {
    PyErr_Clear();
    throw std::runtime_error(
        "torch.Tensor has no __dlpack_c_exchange_api__: torch 2.11 or newer is needed");
  }
  auto* api =
      static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);
  while (api != nullptr && api->header.version.major != 1) {
    api = reinterpret_cast<const dlpack::ExchangeApi*>(api->header.previous);
  }
  if (api == nullptr || api->dltensor_from_py_object_no_sync == nullptr) {
    PyErr_Clear();
    throw std::runtime_error("torch offers no version 1 of DLPack's C exchange API");
  }
  g_api = api;
  g_tensor_type = reinterpret_cast<PyTypeObject*>(tensor_type);
  g_parameter_type = reinterpret_cast<PyTypeObject*>(parameter_type);
  g_grad = getter_of(tensor_type, "grad");
  g_storage = method_of(tensor_type, "untyped_storage");
  Py_INCREF(tensor_type);  // all kept for the life of the process
  Py_INCREF(parameter_type);
}

bool is_plain(PyObject* object) {
  return Py_TYPE(object) == g_tensor_type || Py_TYPE(object) == g_parameter_type;
}

PyObject* grad_of(PyObject* object) {
  if (is_plain(object) && g_grad != nullptr) return g_grad->get(object, g_grad->closure);
  return PyObject_GetAttr(object, names().grad);
}

TensorView view_of(PyObject* object) {
  if (g_api == nullptr) throw std::runtime_error("fastclip._native is not bound to torch yet");
  if (!is_plain(object)) {
    throw Unsupported(std::string("a ") + Py_TYPE(object)->tp_name + ", not a plain tensor");
  }
  dlpack::Tensor tensor{};
  if (g_api->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
    PyErr_Clear();
    throw Unsupported("a tensor without plain storage");
  }
  TensorView view{};
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.device = tensor.device;
  view.ndim = tensor.ndim;
  view.shape = tensor.shape;
  view.strides = tensor.strides;
  view.numel = std::accumulate(tensor.shape, tensor.shape + tensor.ndim, int64_t{1},
                               [](int64_t a, int64_t b) { return a * b; });
  const bool odd = reinterpret_cast<uintptr_t>(view.data) < lowest_address(view.device.type);
  if (odd && view.numel > 0) require_memory(object, tensor);
  view.dtype = dtype_of(tensor.dtype);
  return view;
}

PyObject* storage_of(PyObject* tensor) {
  PyObject* storage = g_storage != nullptr
                          ? g_storage->ml_meth(tensor, nullptr)
                          : PyObject_CallMethodNoArgs(tensor, names().untyped_storage);
  if (storage == nullptr) throw PythonError{};
  return storage;
}

bool stays_finite(double value, DType dtype) {
  if (dtype == DType::kF64) return std::isfinite(value);
  const float single = std::fabs(static_cast<float>(value));
  if (dtype == DType::kF16) return single < 65520.0f;      // from here on to infinity
  if (dtype == DType::kBF16) return single < 0x1.ffp127f;  // likewise
  return std::isfinite(single);
}

PyObject* new_number(double value, DType dtype) {
  auto number = std::make_unique<Number>();
  number->managed.version = {1, 0};
  number->managed.deleter = [](dlpack::ManagedTensor* self) {
    delete reinterpret_cast<Number*>(self);
  };
  dlpack::Tensor& tensor = number->managed.tensor;
  tensor.data = number->value;
  tensor.device = {dlpack::kCPU, 0};
  tensor.dtype = store_number(value, dtype, number->value);
  void* object = nullptr;
  if (g_api->managed_tensor_to_py_object_no_sync(&number.release()->managed, &object) != 0) {
    throw PythonError{};
  }
  return static_cast<PyObject*>(object);
}

void* current_stream(dlpack::Device device) {
  void* stream = nullptr;
  if (g_api->current_work_stream(device.type, device.id, &stream) != 0) throw PythonError{};
  return stream;
}

bool TensorView::is_contiguous() const {
  if (numel == 0) return true;
  int64_t expected = 1;
  for (int32_t d = ndim - 1; d >= 0; --d) {
    if (shape[d] == 1) continue;
    if (strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

bool TensorView::is_dense() const {
  if (is_contiguous()) return true;
  constexpr int32_t kMaxDims = 16;
  if (ndim > kMaxDims) return false;
  int32_t order[kMaxDims];
  std::iota(order, order + ndim, 0);
  std::sort(order, order + ndim, [this](int32_t a, int32_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (int32_t i = 0; i < ndim; ++i) {
    const int32_t d = order[i];
    if (shape[d] == 1) continue;
    if (strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

}  // namespace fastclip
