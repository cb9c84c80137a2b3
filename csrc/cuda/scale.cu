// What is done to gradients in place: a multiplication, or a clamp of every element.
//
// A block walks its share backwards: its end is what the L2 cache still holds of the norm's pass.
#include <cuda_runtime.h>

#include "cuda/block.h"
#include "cuda/grad_norm.h"
#include "cuda/launch.h"
#include "cuda/numbers.h"
#include "cuda/rewrite.h"
#include "cuda/scalars.h"
#include "cuda/walk.h"

namespace fastclip::cuda {
namespace {

// As Scale.
template <class Number>
struct Clamp {
  typename Number::Real limit;  // that the dtype has
  __device__ bool single(typename Number::Bits& x) const {
    const typename Number::Real value = Number::real(x);
    const bool outside = value > limit || value < -limit;
    if (outside) x = Number::bits(value > 0 ? limit : -limit);
    return outside;
  }
  __device__ bool vector(Vector& v) const {
    bool outside = false;
#pragma unroll
    for (int n = 0; n < Number::kItems; ++n) {
      typename Number::Bits x = Number::take(v.word, n);
      outside |= single(x);
      Number::put(v.word, n, x);
    }
    return outside;
  }
};

template <template <class> class Change>
__device__ void rewrite_any(const Piece& piece, Team team, double number) {
  switch (piece.dtype) {
    case DType::kF32: return rewrite<F32>(piece, team, Change<F32>{static_cast<float>(number)});
    case DType::kF64: return rewrite<F64>(piece, team, Change<F64>{number});
    case DType::kBF16: return rewrite<BF16>(piece, team, Change<BF16>{static_cast<float>(number)});
    default: return rewrite<F16>(piece, team, Change<F16>{static_cast<float>(number)});
  }
}

template <class Page>
__global__ void __launch_bounds__(kThreads, kResident)
    scale_kernel(const __grid_constant__ Page page, const __grid_constant__ Multiplier multiplier) {
  wait_for_launch_before();
  const bool of_tensor = multiplier.factor == Factor::kOfTensor;
  const double* factors = static_cast<const double*>(multiplier.data);
  double factor = 1;
  if (!of_tensor) {
    factor = multiplier.data == nullptr ? multiplier.value
                                        : load_number(multiplier.data, multiplier.dtype);
    if (multiplier.factor == Factor::kOfNorm) factor = factor_of(multiplier.max_norm, factor);
    if (factor == 1) return;
  }
  walk<true>(page, [&](uint32_t tensor, const Piece& piece, Team team) {
    const double mine = of_tensor ? factors[tensor] : factor;
    if (mine != 1) rewrite_any<Scale>(piece, team, mine);
  });
}

template <class Page>
__global__ void __launch_bounds__(kThreads, kResident)
    clamp_kernel(const __grid_constant__ Page page, const double limit) {
  walk<true>(page, [&](uint32_t, const Piece& piece, Team team) {
    double mine = limit;  // as the tensor's dtype has it
    if (piece.dtype == DType::kBF16) mine = BF16::real(BF16::bits(static_cast<float>(limit)));
    if (piece.dtype == DType::kF16) mine = F16::real(F16::bits(static_cast<float>(limit)));
    rewrite_any<Clamp>(piece, team, mine);
  });
}

}  // namespace

void scale_grads(const Tensors& tensors, const Multiplier& multiplier, Queue queue) {
  const DeviceGuard guard(queue.device);
  Multiplier mine = multiplier;
  with_page(tensors.size(), [&](auto& page) {
    using Page = std::decay_t<decltype(page)>;
    // The page read last is scaled first.
    for (size_t pages = (tensors.size() + Page::kCapacity - 1) / Page::kCapacity; pages > 0;) {
      const size_t first = --pages * Page::kCapacity;
      fill(page, tensors, first);
      if (page.chunks == 0) continue;
      if (multiplier.factor == Factor::kOfTensor) {
        mine.data = static_cast<const double*>(multiplier.data) + first;
      }
      launch<scale_kernel<Page>>(page.chunks, mine.after_norm, queue, page, mine);
      mine.after_norm = false;
    }
  });
}

void clamp_grads(const Tensors& tensors, double limit, Queue queue) {
  const DeviceGuard guard(queue.device);
  for_pages(tensors, [&](auto& page) {
    using Page = std::decay_t<decltype(page)>;
    if (page.chunks != 0) launch<clamp_kernel<Page>>(page.chunks, false, queue, page, limit);
  });
}

}  // namespace fastclip::cuda
