#include "bindings/arguments.h"

#include "cpu/vector/isa.h"

namespace fastclip {

void require(bool condition, const std::string& message) {
  if (!condition) throw py::value_error(message);
}

TensorView cpu_view(py::handle object, const char* name) {
  const TensorView view = view_of(object.ptr());
  require(view.device.type == dlpack::kCPU || view.device.type == dlpack::kCUDAHost,
          std::string(name) + " must be on the CPU");
  require(view.is_contiguous(), std::string(name) + " must be contiguous");
  return view;
}

TensorView numbers(py::handle object, const char* name, DType dtype, int64_t numel) {
  const TensorView view = cpu_view(object, name);
  require(view.dtype == dtype && view.numel == numel,
          std::string(name) + " has a wrong dtype or size");
  return view;
}

py::dict build_info() {
  py::dict info;
  info["isa"] = cpu::isa_name(cpu::best_isa());
  info["cuda"] = FASTCLIP_CUDA != 0;
  return info;
}

}  // namespace fastclip
