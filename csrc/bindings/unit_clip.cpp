#include "bindings/unit_clip.h"

#include <optional>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/threads.h"
#include "cpu/unit_clip/unit_clip.h"
#include "tensors/python_error.h"
#include "tensors/tensor_list.h"
#include "tensors/tensor_view.h"

namespace fastclip {
namespace {

std::optional<TensorView> view_if_any(PyObject* tensor) {
  if (!is_plain(tensor)) return std::nullopt;  // an exception takes a microsecond
  try {
    return view_of(tensor);
  } catch (const Unsupported&) {
    return std::nullopt;
  }
}

}  // namespace

py::tuple clip_units(const py::sequence& parameters, double clipping, double eps,
                     const py::object& grads_of_them, const py::object& check) {
  const py::tuple items(parameters);  // a snapshot: other threads may change a list
  const bool own = grads_of_them.is_none();
  const py::tuple given = own ? py::tuple() : py::tuple(grads_of_them);
  require(own || given.size() == items.size(), "grads must be as many as parameters");
  size_t index = 0;
  cpu::UnitClip clip({clipping, eps});
  py::list grads, rest, written;
  bool may_hold_inference = false;
  for (py::handle parameter : items) {
    PyObject* found =
        own ? grad_of(parameter.ptr()) : given[index++].cast<py::object>().release().ptr();
    if (found == nullptr) throw PythonError{};
    const py::object grad = py::reinterpret_steal<py::object>(found);
    if (grad.is_none()) {
      if (may_lie_elsewhere(parameter.ptr())) rest.append(parameter);
      continue;
    }
    const std::optional<TensorView> grad_view = view_if_any(found);
    const std::optional<TensorView> weight = view_if_any(parameter.ptr());
    const bool taken = weight && grad_view && clip.add(*weight, *grad_view);
    if (taken) {
      may_hold_inference |= may_be_inference(found);
      grads.append(grad);
    } else {
      rest.append(parameter);
    }
  }
  if (clip.overlaps()) return py::make_tuple(written, items);
  if (!check.is_none() && !rest.empty()) check(parameters);
  if (may_hold_inference) {
    for (py::handle grad : grads) require_writable(grad.ptr());
  }
  std::vector<bool> is_written;
  {
    const Unlocked unlocked;
    is_written = clip.run();
  }
  for (size_t i = 0; i < is_written.size(); ++i) {
    if (is_written[i]) written.append(grads[i]);
  }
  return py::make_tuple(written, rest);
}

}  // namespace fastclip
