#include "bindings/unit_clip.h"

#include <optional>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/threads.h"
#include "cpu/unit_clip/unit_clip.h"
#include "cuda/unit_clip.h"
#include "tensors/overlap.h"
#include "tensors/python.h"
#include "tensors/tensor_list.h"
#include "tensors/tensor_view.h"
#include "tensors/units.h"
#include "tensors/version.h"

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

#if FASTCLIP_CUDA

namespace {

bool on_one_cuda_device(const TensorView& a, const TensorView& b) {
  return a.device.type == dlpack::kCUDA && b.device.type == dlpack::kCUDA &&
         a.device.id == b.device.id;
}

cuda::UnitPair pair_of(const TensorView& weight, const TensorView& grad) {
  const int64_t units = units_of(grad);
  return {weight.data, grad.data, units, grad.numel == 0 ? 0 : grad.numel / units, grad.dtype};
}

// What one call does on one device.
struct OnDevice {
  dlpack::Device device;
  bool takes;
  std::vector<cuda::UnitPair> pairs;
};

OnDevice& on_device(std::vector<OnDevice>& known, dlpack::Device device,
                    const py::function& why_not) {
  for (OnDevice& one : known) {
    if (one.device.id == device.id) return one;
  }
  known.push_back({device, why_not(device.id).cast<std::string>().empty(), {}});
  return known.back();
}

}  // namespace

py::tuple cuda_clip_units(const py::sequence& parameters, double clipping, double eps,
                          const py::function& why_not) {
  const py::tuple items(parameters);
  std::vector<OnDevice> devices;
  std::vector<Range> ranges;
  py::list grads, rest;
  bool may_hold_inference = false;
  for (py::handle parameter : items) {
    PyObject* found = grad_of(parameter.ptr());
    if (found == nullptr) throw PythonError{};
    const py::object grad = py::reinterpret_steal<py::object>(found);
    if (grad.is_none()) continue;
    const std::optional<TensorView> view = view_if_any(found);
    const std::optional<TensorView> weight = view_if_any(parameter.ptr());
    const bool fits =
        view && weight && on_one_cuda_device(*weight, *view) && have_whole_units(*weight, *view);
    const cuda::UnitPair pair = fits ? pair_of(*weight, *view) : cuda::UnitPair{};
    OnDevice* device = fits ? &on_device(devices, view->device, why_not) : nullptr;
    if (device == nullptr || !device->takes || !cuda::takes_units(pair)) {
      rest.append(parameter);
      continue;
    }
    may_hold_inference |= may_be_inference(found);
    grads.append(grad);
    if (view->numel == 0) continue;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(view->data);
    ranges.push_back({begin, begin + view->numel * item_size(view->dtype)});
    device->pairs.push_back(pair);
  }
  if (any_overlap(ranges)) return py::make_tuple(py::list(), items);
  if (may_hold_inference) {
    for (py::handle grad : grads) require_writable(grad.ptr());
  }
  for (const OnDevice& one : devices) {
    if (one.pairs.empty()) continue;
    const cuda::Queue queue{one.device.id, current_stream(one.device)};
    const Unlocked unlocked;
    cuda::clip_units(one.pairs, {clipping, eps}, queue);
  }
  return py::make_tuple(grads, rest);
}

#else

py::tuple cuda_clip_units(const py::sequence&, double, double, const py::function&) {
  throw std::runtime_error("fastclip was built without CUDA kernels");
}

#endif

}  // namespace fastclip
