#include "bindings/threads.h"

#include "tensors/python.h"

namespace fastclip {
namespace {

PyObject* get_num_threads = nullptr;

}  // namespace

void bind_threads(py::object function) {
  PyObject* before = get_num_threads;
  get_num_threads = function.release().ptr();
  Py_XDECREF(before);
}

void ask_torch_threads() {
  if (get_num_threads == nullptr) return;
  const py::object threads =
      py::reinterpret_steal<py::object>(PyObject_CallNoArgs(get_num_threads));
  if (!threads) throw PythonError{};
  set_torch_threads(threads.cast<int>());
}

py::dict thread_limits_of(const std::string& root) {
  ask_torch_threads();
  const ThreadLimits limits = thread_limits(root);
  py::dict found;
  found["torch"] = limits.torch;
  found["affinity"] = limits.affinity;
  found["quota"] = limits.quota;
  found["used"] = max_threads();
  return found;
}

}  // namespace fastclip
