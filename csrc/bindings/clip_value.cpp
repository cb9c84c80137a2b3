#include "bindings/clip_value.h"

#include <cfloat>
#include <cmath>
#include <vector>

#include "bindings/threads.h"
#include "cpu/clip_value/clip_value.h"

namespace fastclip {

bool limit_fits(double limit, const TensorList& list) {
  constexpr double kLargest[kFloatDTypes] = {FLT_MAX, DBL_MAX, 0x1.fep127, 65504.0};
  for (int d = 0; d < kFloatDTypes; ++d) {
    const bool present = (list.dtypes() >> d & 1) != 0;
    if (present && std::fabs(limit) > kLargest[d] && !std::isinf(limit)) return false;
  }
  return !std::isnan(limit);
}

py::list clip_values(py::handle tensors, double limit, bool take_grads) {
  const TensorList list(tensors.ptr(), take_grads);
  if (!list.on_cpu()) throw Unsupported("tensors on another device");
  if (!limit_fits(limit, list)) throw Unsupported("a limit past a dtype's range");
  // All get the limit, and a tensor whose negation is not in memory yet would get its negative.
  if (std::signbit(limit)) throw Unsupported("a negative limit");
  list.require_writable();
  std::vector<bool> is_written;
  {
    const Unlocked unlocked;
    is_written = cpu::clip_values(list, limit);
  }
  py::list written;
  for (size_t i = 0; i < is_written.size(); ++i) {
    if (is_written[i]) written.append(py::handle(list.tensors()[i]));
  }
  return written;
}

}  // namespace fastclip
