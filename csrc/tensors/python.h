// What the core asks of Python objects.
#pragma once

#include <Python.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fastclip {

// A Python exception is set; module.cpp lets it through to the caller unchanged.
struct PythonError {};

// An integer's value; takes the reference.
inline int64_t integer_of(PyObject* object) {
  const int64_t value = object == nullptr ? -1 : PyLong_AsLongLong(object);
  Py_XDECREF(object);
  if (PyErr_Occurred() != nullptr) throw PythonError{};
  return value;
}

// A descriptor's C functions, called without the attribute's look-up.
inline PyGetSetDef* getter_of(PyObject* type, const char* name) {
  PyObject* found = PyObject_GetAttrString(type, name);
  if (found == nullptr) throw std::runtime_error(std::string("torch.Tensor has no ") + name);
  PyGetSetDef* getter = nullptr;
  if (Py_TYPE(found) == &PyGetSetDescr_Type) {
    getter = reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset;
  }
  Py_DECREF(found);
  return getter;
}

inline PyMethodDef* method_of(PyObject* type, const char* name) {
  PyObject* found = PyObject_GetAttrString(type, name);
  if (found == nullptr) throw std::runtime_error(std::string("torch.Tensor has no ") + name);
  PyMethodDef* method = nullptr;
  if (Py_TYPE(found) == &PyMethodDescr_Type) {
    method = reinterpret_cast<PyMethodDescrObject*>(found)->d_method;
  }
  Py_DECREF(found);
  return method != nullptr && method->ml_flags == METH_NOARGS ? method : nullptr;
}

}  // namespace fastclip
