#include "tensors/version.h"

#include <algorithm>
#include <cstdint>

#include "tensors/python.h"
#include "tensors/tensor_view.h"

namespace fastclip {
namespace {

PyObject* g_increment_version = nullptr;
PyGetSetDef* g_version = nullptr;  // of `_version`, unless Python code has put another in its way

// Where torch keeps a tensor's version counter, which only inference tensors lack: word `counter`
// of what word `tensor` of the Python object points to. To ask torch takes 50 ns a tensor, a fifth
// of what clipping a thousand small ones takes. Found by trial, and not used where that fails.
struct CounterPlace {
  int tensor = 0;
  int counter = 0;  // 0: not found
};
CounterPlace g_counter;

using Words = const uintptr_t*;

// The address of torch's own object, as torch tells it.
uintptr_t address_of(PyObject* tensor) {
  return static_cast<uintptr_t>(integer_of(PyObject_GetAttrString(tensor, "_cdata")));
}

CounterPlace find_counter(PyObject* inference, PyObject* normal) {
  constexpr int kWords = 8;  // a cache line: what torch's object holds at the least
  constexpr int kPythonHead = sizeof(PyObject) / sizeof(uintptr_t);
  constexpr int kHead = 2;  // of torch's object: its type and its counts of references
  CounterPlace place;
  bool is_counter[kWords];
  std::fill(is_counter, is_counter + kWords, true);
  for (PyObject* list : {inference, normal}) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
      PyObject* tensor = PyList_GET_ITEM(list, i);
      const uintptr_t address = address_of(tensor);
      int at = kPythonHead;
      const int end = kPythonHead + 2;
      while (at < end && reinterpret_cast<Words>(tensor)[at] != address) ++at;
      if (at == end || (place.tensor != 0 && place.tensor != at)) return {};
      place.tensor = at;
      for (int w = 0; w < kWords; ++w) {
        const bool null = reinterpret_cast<Words>(address)[w] == 0;
        is_counter[w] &= null == (list == inference);
      }
    }
  }
  for (int w = kHead; w < kWords; ++w) {
    if (!is_counter[w]) continue;
    if (place.counter != 0) return {};  // two fit
    place.counter = w;
  }
  return place;
}

}  // namespace

void bind_versions(PyObject* tensor_type, PyObject* increment_version, PyObject* inference,
                   PyObject* normal) {
  g_version = getter_of(tensor_type, "_version");
  g_counter = find_counter(inference, normal);
  g_increment_version = increment_version;
  Py_INCREF(increment_version);  // kept for the life of the process
}

bool may_be_inference(PyObject* tensor) {
  if (g_counter.counter == 0) return true;
  const Words torchs = reinterpret_cast<Words>(reinterpret_cast<Words>(tensor)[g_counter.tensor]);
  return torchs[g_counter.counter] == 0;
}

void require_writable(PyObject* tensor) {
  PyObject* version = is_plain(tensor) && g_version != nullptr
                          ? g_version->get(tensor, g_version->closure)
                          : PyObject_GetAttrString(tensor, "_version");
  if (version == nullptr) {  // an inference tensor has none; torch says when it may be written
    PyErr_Clear();
    version = PyObject_CallMethod(tensor, "mul_", "d", 1.0);
    if (version == nullptr) throw PythonError{};
  }
  Py_DECREF(version);
}

void mark_written(PyObject* tensors) {
  PyObject* none = PyObject_CallOneArg(g_increment_version, tensors);
  if (none == nullptr) throw PythonError{};
  Py_DECREF(none);
}

}  // namespace fastclip
