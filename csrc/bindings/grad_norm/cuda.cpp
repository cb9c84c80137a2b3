#include "bindings/grad_norm/cuda.h"

#include <vector>

#include "bindings/arguments.h"
#include "bindings/clip_value.h"
#include "bindings/threads.h"
#include "cuda/grad_norm.h"

namespace fastclip {

py::tuple device_of(const TensorList& list) {
  return py::make_tuple(static_cast<int>(list.device().type), list.device().id);
}

py::bytes addresses_of(const TensorList& list) {
  std::vector<int64_t> table;
  table.reserve(3 * list.chunks().size());
  for (const Chunk& tensor : list.chunks()) {
    table.push_back(reinterpret_cast<int64_t>(tensor.data));
    table.push_back(tensor.numel);
    table.push_back(static_cast<int64_t>(tensor.dtype));
  }
  return py::bytes(reinterpret_cast<const char*>(table.data()), 8 * table.size());
}

#if FASTCLIP_CUDA

namespace {

void require_cuda(const TensorList& list) {
  require(list.device().type == dlpack::kCUDA, "tensors must be on a CUDA device");
}

// A contiguous buffer on the list's device, of at least `numel` elements.
TensorView buffer(const TensorList& list, py::handle object, const char* name, int64_t numel) {
  const TensorView view = view_of(object.ptr());
  require(view.device.type == dlpack::kCUDA && view.device.id == list.device().id,
          std::string(name) + " must be on the tensors' device");
  require(view.is_contiguous() && view.numel >= numel, std::string(name) + " is too small");
  require(static_cast<int>(view.dtype) < kFloatDTypes, std::string(name) + " must be real");
  return view;
}

void* typed_buffer(const TensorList& list, py::handle object, const char* name, DType dtype,
                   int64_t numel) {
  if (object.is_none()) return nullptr;
  const TensorView view = buffer(list, object, name, numel);
  require(view.dtype == dtype, std::string(name) + " has a wrong dtype");
  return view.data;
}

cuda::Queue queue_of(const TensorList& list) {
  return {list.device().id, current_stream(list.device())};
}

}  // namespace

std::string cuda_why_not(int device) { return cuda::why_not(device); }

int64_t cuda_work_size(const TensorList& list) {
  return cuda::kWorkHeader + cuda::partials(list.chunks());
}

void cuda_grad_norm(TensorList& list, double p, double max_norm, bool scale, py::handle work,
                    py::handle total, py::handle per_tensor, py::handle units) {
  require_cuda(list);
  require(!scale || cuda::has_total(p), "p must be 1, 2 or infinite where its norm scales");
  if (scale) list.require_writable();
  const int64_t tensors = static_cast<int64_t>(list.chunks().size());
  cuda::NormResult result{};
  result.work = static_cast<double*>(buffer(list, work, "work", cuda_work_size(list)).data);
  require(view_of(work.ptr()).dtype == DType::kF64, "work must be float64");
  if (!total.is_none()) {
    const TensorView view = buffer(list, total, "total", 1);
    result.total = view.data;
    result.total_dtype = view.dtype;
  }
  result.per_tensor =
      static_cast<double*>(typed_buffer(list, per_tensor, "per_tensor", DType::kF64, tensors));
  const void* divisors = typed_buffer(list, units, "units", DType::kF64, tensors);
  const cuda::Queue queue = queue_of(list);
  const Unlocked unlocked;
  cuda::grad_norm(list.chunks(), p, max_norm, result, static_cast<const double*>(divisors), queue);
  if (scale) {
    const cuda::Multiplier multiplier{
        cuda::Factor::kOfNorm, result.work + 1, DType::kF64, 0, max_norm, true};
    cuda::scale_grads(list.chunks(), multiplier, queue);
  }
}

namespace {

// Multiplies by a number on the host or the device, or by one for each tensor.
void multiply(TensorList& list, cuda::Factor factor, double max_norm, py::handle number,
              const char* name) {
  require_cuda(list);
  list.require_writable();
  list.refresh();
  cuda::Multiplier multiplier{factor, nullptr, DType::kF64, 0, max_norm, false};
  if (factor == cuda::Factor::kOfTensor) {
    const int64_t tensors = static_cast<int64_t>(list.chunks().size());
    multiplier.data = typed_buffer(list, number, name, DType::kF64, tensors);
  } else if (PyFloat_Check(number.ptr())) {
    multiplier.value = PyFloat_AS_DOUBLE(number.ptr());
  } else {
    const TensorView view = buffer(list, number, name, 1);
    multiplier.data = view.data;
    multiplier.dtype = view.dtype;
  }
  const cuda::Queue queue = queue_of(list);
  const Unlocked unlocked;
  cuda::scale_grads(list.chunks(), multiplier, queue);
}

}  // namespace

void cuda_scale_grads(TensorList& list, double max_norm, py::handle norm) {
  multiply(list, cuda::Factor::kOfNorm, max_norm, norm, "norm");
}

void cuda_multiply(TensorList& list, py::handle factor) {
  multiply(list, cuda::Factor::kNumber, 0, factor, "factor");
}

void cuda_scale_each(TensorList& list, py::handle factors) {
  require(!factors.is_none(), "factors must be a tensor");
  multiply(list, cuda::Factor::kOfTensor, 0, factors, "factors");
}

void cuda_clamp(TensorList& list, double limit) {
  require_cuda(list);
  require(limit >= 0 && limit_fits(limit, list), "limit is negative, or past a dtype's range");
  list.require_writable();
  list.refresh();
  const cuda::Queue queue = queue_of(list);
  const Unlocked unlocked;
  cuda::clamp_grads(list.chunks(), limit, queue);
}

#else

namespace {
constexpr const char* kMissing = "fastclip was built without CUDA kernels";
}

std::string cuda_why_not(int) { return kMissing; }

int64_t cuda_work_size(const TensorList&) { throw std::runtime_error(kMissing); }

void cuda_grad_norm(TensorList&, double, double, bool, py::handle, py::handle, py::handle,
                    py::handle) {
  throw std::runtime_error(kMissing);
}

void cuda_scale_grads(TensorList&, double, py::handle) { throw std::runtime_error(kMissing); }

void cuda_multiply(TensorList&, py::handle) { throw std::runtime_error(kMissing); }

void cuda_scale_each(TensorList&, py::handle) { throw std::runtime_error(kMissing); }

void cuda_clamp(TensorList&, double) { throw std::runtime_error(kMissing); }

#endif

}  // namespace fastclip
