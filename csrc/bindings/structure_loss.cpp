#include "cpu/structure_loss/structure_loss.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/threads.h"

namespace fastclip {
namespace {

void require_same_shape(const TensorView& a, const TensorView& b, const char* name) {
  bool same = a.ndim == b.ndim;
  for (int32_t d = 0; same && d < a.ndim; ++d) same = a.shape[d] == b.shape[d];
  require(same, std::string(name) + " must have the logits' shape");
}

// A storage that was freed under its tensor, or never was there.
void require_memory(const TensorView& view, const char* name) {
  require(view.data != nullptr || view.numel == 0, std::string(name) + " has no memory");
}

TensorView memory_view(py::handle object, const char* name) {
  const TensorView view = cpu_view(object, name);
  require_memory(view, name);
  return view;
}

TensorView memory_of_numbers(py::handle object, const char* name, DType dtype, int64_t numel) {
  const TensorView view = numbers(object, name, dtype, numel);
  require_memory(view, name);
  return view;
}

struct Options {
  int64_t window;
  double boundary_weight, smooth;
  bool weighted_bce, pixel_iou;
  py::handle pos_weight;  // [C] float64, or None
};

// The arguments that forward and backward share.
cpu::StructureLoss structure_loss(const py::sequence& logits, py::handle mask, py::handle valid,
                                  const Options& options) {
  require(py::len(logits) > 0, "logits must hold at least one head");
  require(options.window > 0 && options.window % 2 == 1, "window must be odd and positive");
  const TensorView mask_view = memory_view(mask, "mask");
  require(mask_view.ndim == 4, "mask must be [B, C, H, W]");
  cpu::StructureLoss loss{};
  loss.channels = mask_view.shape[1];
  loss.images = mask_view.shape[0] * loss.channels;
  loss.height = mask_view.shape[2];
  loss.width = mask_view.shape[3];
  loss.window = options.window;
  loss.boundary_weight = options.boundary_weight;
  loss.smooth = options.smooth;
  loss.weighted_bce = options.weighted_bce;
  loss.pixel_iou = options.pixel_iou;
  if (!options.pos_weight.is_none()) {
    const TensorView view =
        memory_of_numbers(options.pos_weight, "pos_weight", DType::kF64, loss.channels);
    loss.pos_weight = static_cast<const double*>(view.data);
  }
  loss.mask = mask_view.data;
  loss.mask_dtype = mask_view.dtype;
  if (!valid.is_none()) {
    const TensorView valid_view = memory_view(valid, "valid");
    require_same_shape(valid_view, mask_view, "valid");
    loss.valid = valid_view.data;
    loss.valid_dtype = valid_view.dtype;
  }
  for (py::handle item : logits) {
    const TensorView view = memory_view(item, "logits");
    require_same_shape(mask_view, view, "mask");
    require(static_cast<int>(view.dtype) < kFloatDTypes, "logits must be floating point");
    require(loss.heads.empty() || view.dtype == loss.logits_dtype, "heads must share one dtype");
    loss.logits_dtype = view.dtype;
    loss.heads.push_back({view.data, nullptr});
  }
  return loss;
}

DType real_dtype(DType logits) { return logits == DType::kF64 ? DType::kF64 : DType::kF32; }

void store_real(const TensorView& view, int64_t i, double value) {
  if (view.dtype == DType::kF64)
    static_cast<double*>(view.data)[i] = value;
  else
    static_cast<float*>(view.data)[i] = static_cast<float>(value);
}

// Where each head's gradient goes; None for a head that needs none.
void take_grads(cpu::StructureLoss& problem, const py::sequence& grads) {
  require(py::len(grads) == problem.heads.size(), "grads must hold one tensor per head, or None");
  const int64_t numel = problem.images * problem.height * problem.width;
  for (size_t h = 0; h < problem.heads.size(); ++h) {
    const py::object grad = grads[h];
    if (grad.is_none()) continue;
    problem.heads[h].grad = memory_of_numbers(grad, "grads", problem.logits_dtype, numel).data;
  }
}

// loss[heads, B, C] (the logits' real type) and sums[heads, B, C, 4] (float64) are written.
void structure_loss_forward(const py::sequence& logits, py::handle mask, py::handle valid,
                            int64_t window, double boundary_weight, double smooth,
                            bool weighted_bce, py::handle loss, py::handle sums, bool pixel_iou,
                            py::handle pos_weight) {
  const cpu::StructureLoss problem = structure_loss(
      logits, mask, valid, {window, boundary_weight, smooth, weighted_bce, pixel_iou, pos_weight});
  const int64_t count = static_cast<int64_t>(problem.heads.size()) * problem.images;
  const TensorView loss_view =
      memory_of_numbers(loss, "loss", real_dtype(problem.logits_dtype), count);
  const TensorView sums_view = memory_of_numbers(sums, "sums", DType::kF64, 4 * count);
  const Unlocked unlocked;
  std::vector<double> values(count);
  problem.forward(static_cast<cpu::LossSums*>(sums_view.data), values.data());
  for (int64_t i = 0; i < count; ++i) store_real(loss_view, i, values[i]);
}

// The sum of factors[head] * loss as a new tensor (0-d, the logits' real type), and unless it is
// None, sums as above. With `grads` (a tensor or None for each head) also d total / d logits.
py::object structure_loss_total(const py::sequence& logits, py::handle mask, py::handle valid,
                                int64_t window, double boundary_weight, double smooth,
                                bool weighted_bce, const std::vector<double>& factors,
                                py::handle sums, const py::sequence& grads, bool pixel_iou,
                                py::handle pos_weight) {
  cpu::StructureLoss problem = structure_loss(
      logits, mask, valid, {window, boundary_weight, smooth, weighted_bce, pixel_iou, pos_weight});
  const int64_t heads = static_cast<int64_t>(problem.heads.size());
  const int64_t count = heads * problem.images;
  std::vector<cpu::LossSums> own_sums(sums.is_none() ? count : 0);
  cpu::LossSums* image_sums = own_sums.data();
  if (!sums.is_none()) {
    image_sums =
        static_cast<cpu::LossSums*>(memory_of_numbers(sums, "sums", DType::kF64, 4 * count).data);
  }
  require(static_cast<int64_t>(factors.size()) == heads, "factors must hold one number per head");
  const bool backward = py::len(grads) > 0;
  if (backward) take_grads(problem, grads);
  double total = 0;
  {
    const Unlocked unlocked;
    std::vector<double> values(count);
    if (backward) {
      problem.forward_backward(factors.data(), image_sums, values.data());
    } else {
      problem.forward(image_sums, values.data());
    }
    for (int64_t i = 0; i < count; ++i) total += factors[i / problem.images] * values[i];
  }
  return py::reinterpret_steal<py::object>(new_number(total, real_dtype(problem.logits_dtype)));
}

void structure_loss_backward(py::handle grad_loss, const py::sequence& logits, py::handle mask,
                             py::handle valid, py::handle sums, int64_t window,
                             double boundary_weight, double smooth, bool weighted_bce,
                             const py::sequence& grads, bool pixel_iou, py::handle pos_weight) {
  cpu::StructureLoss problem = structure_loss(
      logits, mask, valid, {window, boundary_weight, smooth, weighted_bce, pixel_iou, pos_weight});
  const int64_t count = static_cast<int64_t>(problem.heads.size()) * problem.images;
  const DType real = real_dtype(problem.logits_dtype);
  const TensorView upstream_view = memory_of_numbers(grad_loss, "grad_loss", real, count);
  const TensorView sums_view = memory_of_numbers(sums, "sums", DType::kF64, 4 * count);
  take_grads(problem, grads);
  const Unlocked unlocked;
  std::vector<double> upstream(count);
  for (int64_t i = 0; i < count; ++i) {
    upstream[i] = real == DType::kF64 ? static_cast<const double*>(upstream_view.data)[i]
                                      : static_cast<const float*>(upstream_view.data)[i];
  }
  problem.backward(static_cast<const cpu::LossSums*>(sums_view.data), upstream.data());
}

}  // namespace

void bind_structure_loss(py::module_& m) {
  using py::arg;
  const py::none none;
  m.def("structure_loss_forward", &structure_loss_forward, arg("logits"), arg("mask"), arg("valid"),
        arg("window"), arg("boundary_weight"), arg("smooth"), arg("weighted_bce"), arg("loss"),
        arg("sums"), arg("pixel_iou") = false, arg("pos_weight") = none);
  m.def("structure_loss_total", &structure_loss_total, arg("logits"), arg("mask"), arg("valid"),
        arg("window"), arg("boundary_weight"), arg("smooth"), arg("weighted_bce"), arg("factors"),
        arg("sums"), arg("grads"), arg("pixel_iou") = false, arg("pos_weight") = none);
  m.def("structure_loss_backward", &structure_loss_backward, arg("grad_loss"), arg("logits"),
        arg("mask"), arg("valid"), arg("sums"), arg("window"), arg("boundary_weight"),
        arg("smooth"), arg("weighted_bce"), arg("grads"), arg("pixel_iou") = false,
        arg("pos_weight") = none);
}

}  // namespace fastclip
