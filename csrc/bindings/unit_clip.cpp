#include "bindings/unit_clip.h"

#include <vector>

#include "cpu/unit_clip/unit_clip.h"
#include "tensors/python_error.h"
#include "tensors/tensor_view.h"

namespace fastclip {

py::tuple clip_units(const py::sequence& parameters, double clipping, double eps) {
  const py::tuple items(parameters);  // a snapshot: other threads may change a list
  cpu::UnitClip clip({clipping, eps});
  py::list grads, rest, written;
  for (py::handle parameter : items) {
    PyObject* found = grad_of(parameter.ptr());
    if (found == nullptr) throw PythonError{};
    const py::object grad = py::reinterpret_steal<py::object>(found);
    if (grad.is_none()) continue;
    bool taken = false;
    try {
      taken = clip.add(view_of(parameter.ptr()), view_of(found));
    } catch (const Unsupported&) {
    }
    if (taken) {
      grads.append(grad);
    } else {
      rest.append(parameter);
    }
  }
  if (clip.overlaps()) return py::make_tuple(written, items);
  std::vector<bool> is_written;
  {
    py::gil_scoped_release unlocked;
    is_written = clip.run();
  }
  for (size_t i = 0; i < is_written.size(); ++i) {
    if (is_written[i]) written.append(grads[i]);
  }
  return py::make_tuple(written, rest);
}

}  // namespace fastclip
