#include "tensors/tensor_view.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>

#include "cpu/vector/simd.h"
#include "tensors/python_error.h"

namespace fastclip {
namespace {

const dlpack::ExchangeApi* g_api = nullptr;
PyTypeObject* g_tensor_type = nullptr;
PyTypeObject* g_parameter_type = nullptr;
PyObject* g_increment_version = nullptr;
PyGetSetDef* g_grad = nullptr;  // of TensorBase, unless Python code has put another in its way

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

void bind_torch(PyObject* tensor_type, PyObject* parameter_type, PyObject* increment_version) {
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
  PyObject* grad = PyObject_GetAttrString(tensor_type, "grad");
  if (grad == nullptr) throw std::runtime_error("torch.Tensor has no attribute grad");
  if (Py_TYPE(grad) == &PyGetSetDescr_Type) {
    g_grad = reinterpret_cast<PyGetSetDescrObject*>(grad)->d_getset;
  }
  Py_DECREF(grad);
  g_increment_version = increment_version;
  Py_INCREF(tensor_type);  // all kept for the life of the process
  Py_INCREF(parameter_type);
  Py_INCREF(increment_version);
}

PyObject* grad_of(PyObject* object) {
  static PyObject* const name = PyUnicode_InternFromString("grad");
  const bool plain = Py_TYPE(object) == g_tensor_type || Py_TYPE(object) == g_parameter_type;
  if (plain && g_grad != nullptr) return g_grad->get(object, g_grad->closure);
  return PyObject_GetAttr(object, name);
}

TensorView view_of(PyObject* object) {
  if (g_api == nullptr) throw std::runtime_error("fastclip._native is not bound to torch yet");
  if (Py_TYPE(object) != g_tensor_type && Py_TYPE(object) != g_parameter_type) {
    throw Unsupported(std::string("a ") + Py_TYPE(object)->tp_name + ", not a plain tensor");
  }
  dlpack::Tensor tensor{};
  if (g_api->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
    PyErr_Clear();
    throw Unsupported("a tensor without plain storage");
  }
  TensorView view{};
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.dtype = dtype_of(tensor.dtype);
  view.device = tensor.device;
  view.ndim = tensor.ndim;
  view.shape = tensor.shape;
  view.strides = tensor.strides;
  view.numel = std::accumulate(tensor.shape, tensor.shape + tensor.ndim, int64_t{1},
                               [](int64_t a, int64_t b) { return a * b; });
  return view;
}

void mark_written(PyObject* tensors) {
  PyObject* none = PyObject_CallOneArg(g_increment_version, tensors);
  if (none == nullptr) throw PythonError{};
  Py_DECREF(none);
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
