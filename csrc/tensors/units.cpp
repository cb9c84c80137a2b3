#include "tensors/units.h"

namespace fastclip {
namespace {

bool has_whole_units(const TensorView& view) {
  if (view.is_contiguous()) return true;
  const int64_t units = units_of(view);
  return view.is_dense() && (units == 1 || view.strides[0] == view.numel / units);
}

}  // namespace

bool have_whole_units(const TensorView& weight, const TensorView& grad) {
  bool same = weight.dtype == grad.dtype && weight.ndim == grad.ndim;
  for (int32_t d = 0; same && d < grad.ndim; ++d) same = weight.shape[d] == grad.shape[d];
  if (!same || static_cast<int>(grad.dtype) >= kFloatDTypes) return false;
  return has_whole_units(weight) && has_whole_units(grad);
}

}  // namespace fastclip
