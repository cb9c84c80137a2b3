// Memory on its way before it is read.
#pragma once

#include <Python.h>

#include <cstddef>

namespace fastclip {

// A tensor is a Python object, which holds a pointer to torch's, which is three cache lines: in a
// training step all of them have gone cold. What these words hold is only prefetched.
inline void prefetch_pointees(PyObject* object) {
  constexpr size_t kHead = sizeof(PyObject) / sizeof(void*);
  constexpr size_t kWords = kHead + 2;
  if (Py_TYPE(object)->tp_basicsize < static_cast<Py_ssize_t>(kWords * sizeof(void*))) return;
  const char* const* words = reinterpret_cast<const char* const*>(object);
  for (size_t w = kHead; w < kWords; ++w) {
    for (int line = 0; line < 3; ++line) __builtin_prefetch(words[w] + 64 * line);
  }
}

}  // namespace fastclip
