// What the core asks of Python objects.
#pragma once

#include <Python.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastclip {

// A Python exception is set; module.cpp lets it through to the caller unchanged.
struct PythonError {};

// Names of attributes, made when the module is loaded: one thread that made them on their first use
// would hold others up, who cannot stop where a free-threaded Python asks them to.
struct Names {
  PyObject* const grad = PyUnicode_InternFromString("grad");
  PyObject* const local_tensor = PyUnicode_InternFromString("_local_tensor");
  PyObject* const mesh = PyUnicode_InternFromString("mesh");
  PyObject* const placements = PyUnicode_InternFromString("placements");
  PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject* const spec = PyUnicode_InternFromString("_spec");
  PyObject* const untyped_storage = PyUnicode_InternFromString("untyped_storage");
};

inline const Names& names() {
  static const Names made;
  return made;
}

// Keeps other threads from what `object` stands for, as the GIL does: not while Python code that
// runs meanwhile waits for something.
class CriticalSection {
 public:
#ifdef Py_GIL_DISABLED
  explicit CriticalSection(PyObject* object) { PyCriticalSection_Begin(&section_, object); }
  ~CriticalSection() { PyCriticalSection_End(&section_); }
#else
  explicit CriticalSection(PyObject*) {}
  ~CriticalSection() {}  // not a trivial one, which compilers call an unused variable
#endif
  CriticalSection(const CriticalSection&) = delete;
  CriticalSection& operator=(const CriticalSection&) = delete;

#ifdef Py_GIL_DISABLED
 private:
  PyCriticalSection section_;
#endif
};

// An integer's value; takes the reference.
inline int64_t integer_of(PyObject* object) {
  const int64_t value = object == nullptr ? -1 : PyLong_AsLongLong(object);
  Py_XDECREF(object);
  if (PyErr_Occurred() != nullptr) throw PythonError{};
  return value;
}

// torch.Tensor's attribute if it is a descriptor of this type, else null: Python code may have put
// something else there. A borrowed reference: the type keeps it.
inline PyObject* descriptor_of(PyObject* type, const char* name, PyTypeObject* kind) {
  PyObject* found = PyObject_GetAttrString(type, name);
  if (found == nullptr) throw std::runtime_error(std::string("torch.Tensor has no ") + name);
  const bool is_kind = Py_TYPE(found) == kind;
  Py_DECREF(found);
  return is_kind ? found : nullptr;
}

// A descriptor's C functions, called without the attribute's look-up.
inline PyGetSetDef* getter_of(PyObject* type, const char* name) {
  PyObject* found = descriptor_of(type, name, &PyGetSetDescr_Type);
  return found != nullptr ? reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset : nullptr;
}

inline PyMethodDef* method_of(PyObject* type, const char* name) {
  PyObject* found = descriptor_of(type, name, &PyMethodDescr_Type);
  if (found == nullptr) return nullptr;
  PyMethodDef* method = reinterpret_cast<PyMethodDescrObject*>(found)->d_method;
  return method->ml_flags == METH_NOARGS ? method : nullptr;
}

}  // namespace fastclip
