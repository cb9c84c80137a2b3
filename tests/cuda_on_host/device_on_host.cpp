// Torch's CPU tensors as tensors on CUDA device 0, for an extension built against the stand-in: the
// exchange API that it is bound to says so. Linked with grad_norm_on_host.cpp and all of csrc.
#include "tensors/dlpack.h"

namespace {

using fastclip::dlpack::DeviceType;
using fastclip::dlpack::ExchangeApi;
using fastclip::dlpack::Tensor;

const ExchangeApi* g_torch = nullptr;
ExchangeApi g_pretended;

int dltensor_on_device(void* py_object, Tensor* out) {
  const int failed = g_torch->dltensor_from_py_object_no_sync(py_object, out);
  if (failed == 0) out->device = {fastclip::dlpack::kCUDA, 0};
  return failed;
}

int default_stream(DeviceType, int32_t, void** out) {
  *out = nullptr;
  return 0;
}

}  // namespace

extern "C" const void* pretend_on_device(const void* api) {
  g_torch = static_cast<const ExchangeApi*>(api);
  g_pretended = *g_torch;
  g_pretended.header.previous = nullptr;
  g_pretended.dltensor_from_py_object_no_sync = dltensor_on_device;
  g_pretended.current_work_stream = default_stream;
  return &g_pretended;
}
