// One launch reads every gradient of a model; one more scales them, or sees that it need not.
//
// The table of tensors travels in the kernel's parameters, so nothing is copied to the device and
// nothing is allocated: a call can be captured in a graph, and never waits. Each block takes every
// gridDim-th chunk of the concatenated tensors and finds the chunk's tensor by binary search.
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <type_traits>

#include "cuda/block.h"
#include "cuda/grad_norm.h"
#include "cuda/launch.h"
#include "cuda/numbers.h"
#include "cuda/page.h"

namespace fastclip::cuda {
namespace {

constexpr int kInFlight = 4;   // 16-byte loads that a thread has under way
constexpr int kResident = 4;   // blocks of a multiprocessor that registers must allow
constexpr double kEps = 1e-6;  // torch's

// A float32 sum of squares within these bounds lost nothing that matters to overflow or to squares
// under 2^-126. Outside, the same registers are summed again, scaled by a power of two. float64 is
// squared as it is: the norm is infinite from 1e154 on, as torch's.
constexpr float kLow = 1e-25f, kHigh = 1e38f;

struct NormLaunch {
  NormResult result;
  double max_norm;
  int64_t first_tensor;
  uint32_t ticket;
  bool first_page;
  bool last_page;
};

static_assert(sizeof(NormLaunch) <= kOtherBytes);

// Tickets are zero when no launch is under way. Launches outside graphs take turns on the first
// half, far more than can be under way at once; a captured launch owns its ticket for ever, since
// nobody knows when its graph will run.
constexpr uint32_t kTickets = 1 << 15;
__device__ unsigned int g_tickets[2 * kTickets];

template <NormKind kind>
__device__ float gather(float sum, float x) {
  if (kind == NormKind::kL2) return fmaf(x, x, sum);
  if (kind == NormKind::kL1) return sum + fabsf(x);
  const uint32_t magnitude = __float_as_uint(x) & 0x7fffffffu;  // as integers, NaN is the largest
  return __uint_as_float(max(magnitude, __float_as_uint(sum)));
}

template <NormKind kind>
__device__ double gather(double sum, double x) {
  if (kind == NormKind::kL2) return fma(x, x, sum);
  return combine<kind>(sum, fabs(x));
}

// One sum per vector component, so that few additions in a row are float32; then pairs of them.
template <NormKind kind, class Number>
__device__ typename Number::Real sum_vectors(const Vector (&v)[kInFlight],
                                             typename Number::Real scale) {
  constexpr int kItems = Number::kItems;
  typename Number::Real sum[kItems] = {};
#pragma unroll
  for (int k = 0; k < kInFlight; ++k) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      sum[i] = gather<kind>(sum[i], Number::item(v[k].word, i) * scale);
    }
  }
#pragma unroll
  for (int width = kItems / 2; width > 0; width /= 2) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sum[i] =
          kind == NormKind::kMax ? gather<kind>(sum[i], sum[i + width]) : sum[i] + sum[i + width];
    }
  }
  return sum[0];
}

template <NormKind kind, class Number>
__device__ double batch(const Vector (&v)[kInFlight]) {
  const typename Number::Real sum = sum_vectors<kind, Number>(v, 1);
  if (kind == NormKind::kMax || sizeof(sum) == sizeof(double)) return sum;
  if (sum >= kLow && sum <= kHigh) return sum;
  const bool tiny = sum < kLow;  // the square of any float32 times 2^96 or 2^-96 fits its range
  const double again = sum_vectors<kind, Number>(v, tiny ? 0x1p96f : 0x1p-96f);
  const double back = tiny ? 0x1p-96 : 0x1p96;
  return kind == NormKind::kL2 ? again * back * back : again * back;
}

// This thread's part of a piece.
template <NormKind kind, class Number>
__device__ double reduce(const Piece& piece) {
  const Split<Number> x(piece.data, piece.numel);
  const uint4* body = x.body();
  double total = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < x.vectors; i += kThreads * kInFlight) {
    Vector v[kInFlight] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int at = i + k * kThreads;
      if (at < x.vectors) v[k] = Vector::load(body + at);
    }
    total = combine<kind>(total, batch<kind, Number>(v));
  }
  const int edge = x.edge(threadIdx.x);
  if (edge >= 0) total = gather<kind>(total, static_cast<double>(Number::real(x.data[edge])));
  return total;
}

template <NormKind kind>
__device__ double reduce_any(const Piece& piece) {
  switch (piece.dtype) {
    case DType::kF32: return reduce<kind, F32>(piece);
    case DType::kF64: return reduce<kind, F64>(piece);
    case DType::kBF16: return reduce<kind, BF16>(piece);
    default: return reduce<kind, F16>(piece);
  }
}

template <NormKind kind>
__device__ double root(double sum) {
  return kind == NormKind::kL2 ? sqrt(sum) : sum;
}

__device__ double factor_of(double max_norm, double norm) {
  const double factor = max_norm / (norm + kEps);
  return factor >= 1 ? 1 : factor;  // NaN stays, and makes every gradient NaN
}

__device__ double load_number(const void* data, DType dtype) {
  switch (dtype) {
    case DType::kF32: return *static_cast<const float*>(data);
    case DType::kF64: return *static_cast<const double*>(data);
    case DType::kBF16: return BF16::real(*static_cast<const uint16_t*>(data));
    default: return F16::real(*static_cast<const uint16_t*>(data));
  }
}

__device__ void store_number(void* data, DType dtype, double x) {
  switch (dtype) {
    case DType::kF32: *static_cast<float*>(data) = static_cast<float>(x); break;
    case DType::kF64: *static_cast<double*>(data) = x; break;
    case DType::kBF16: *static_cast<uint16_t*>(data) = BF16::bits(static_cast<float>(x)); break;
    default: *static_cast<uint16_t*>(data) = F16::bits(static_cast<float>(x));
  }
}

// The sum over this page's partials, in thread 0; on the way, the norm of each of its tensors.
template <NormKind kind, class Page>
__device__ double sum_partials(const Page& page, const NormLaunch& launch) {
  const double* partial = launch.result.work + kWorkHeader;
  double sum = 0;
  if (launch.result.per_tensor == nullptr) {
    for (unsigned int b = threadIdx.x; b < gridDim.x; b += kThreads) {
      sum = combine<kind>(sum, __ldcg(partial + b));
    }
    return block_total<kind>(sum);
  }
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t t = threadIdx.x / 32; t < page.tensors; t += kWarps) {
    double tensor = 0;
    for (uint32_t c = (t == 0 ? 0 : page.entry[t - 1].end) + lane; c < page.entry[t].end; c += 32) {
      tensor = combine<kind>(tensor, __ldcg(partial + c));
    }
    tensor = warp_total<kind>(tensor);
    if (lane == 0) {
      launch.result.per_tensor[launch.first_tensor + t] = root<kind>(tensor);
      sum = combine<kind>(sum, tensor);
    }
  }
  return block_total<kind>(sum);
}

template <NormKind kind, class Page>
__global__ void __launch_bounds__(kThreads, kResident)
    norm_kernel(const __grid_constant__ Page page, const __grid_constant__ NormLaunch launch) {
  const NormResult& result = launch.result;
  double* partial = result.work + kWorkHeader;
  double total = 0;
  for (uint32_t chunk = blockIdx.x; chunk < page.chunks; chunk += gridDim.x) {
    total = combine<kind>(total, reduce_any<kind>(find(page, chunk)));
    if (result.per_tensor != nullptr) {
      total = block_total<kind>(total);
      if (threadIdx.x == 0) partial[chunk] = total;
      total = 0;
    }
  }
  if (result.per_tensor == nullptr) {
    total = block_total<kind>(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
  }
  if (!is_last_block(&g_tickets[launch.ticket])) return;

  double sum = sum_partials<kind>(page, launch);
  if (threadIdx.x != 0) return;
  if (!launch.first_page) sum = combine<kind>(result.work[0], sum);
  result.work[0] = sum;
  if (!launch.last_page) return;
  const double norm = root<kind>(sum);
  const double factor = factor_of(launch.max_norm, norm);
  result.work[1] = norm;
  result.work[2] = factor;
  if (result.total != nullptr) store_number(result.total, result.total_dtype, norm);
  if (result.optimizer != nullptr) {
    result.optimizer[0] = static_cast<float>(1 / factor);
    result.optimizer[1] = isfinite(norm) ? 0.0f : 1.0f;
  }
}

template <class Number>
__device__ void scale(const Piece& piece, double factor) {
  const typename Number::Real f = static_cast<typename Number::Real>(factor);
  const Split<Number> x(piece.data, piece.numel);
  uint4* body = x.body();
#pragma unroll 1
  for (int i = threadIdx.x; i < x.vectors; i += kThreads * kInFlight) {
    Vector v[kInFlight] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (i + k * kThreads < x.vectors) v[k] = Vector::load(body + i + k * kThreads);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
#pragma unroll
      for (int n = 0; n < Number::kItems; ++n) Number::scale(v[k].word, n, f);
      if (i + k * kThreads < x.vectors) v[k].store(body + i + k * kThreads);
    }
  }
  const int edge = x.edge(threadIdx.x);
  if (edge >= 0) x.data[edge] = Number::bits(Number::real(x.data[edge]) * f);
}

// Last chunk first: its end is what the L2 cache still holds of the norm's pass.
template <class Page>
__global__ void __launch_bounds__(kThreads, kResident)
    scale_kernel(const __grid_constant__ Page page, const __grid_constant__ KnownNorm known,
                 const double max_norm) {
  __shared__ double shared_factor;
  if (threadIdx.x == 0) {
    const double norm = known.data == nullptr ? known.value : load_number(known.data, known.dtype);
    shared_factor = factor_of(max_norm, norm);
  }
  __syncthreads();
  const double factor = shared_factor;
  if (factor == 1) return;
  for (uint32_t i = blockIdx.x; i < page.chunks; i += gridDim.x) {
    const Piece piece = find(page, page.chunks - 1 - i);
    switch (piece.dtype) {
      case DType::kF32: scale<F32>(piece, factor); break;
      case DType::kF64: scale<F64>(piece, factor); break;
      case DType::kBF16: scale<BF16>(piece, factor); break;
      default: scale<F16>(piece, factor);
    }
  }
}

uint32_t next_ticket(cudaStream_t stream) {
  static std::atomic<uint32_t> eager{0}, captured{0};
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status));
  if (status == cudaStreamCaptureStatusNone) return eager++ % kTickets;
  const uint32_t ticket = captured++;
  if (ticket >= kTickets) throw std::runtime_error("too many norms were captured in CUDA graphs");
  return kTickets + ticket;
}

}  // namespace

bool has_norm(double p) { return p == 1 || p == 2 || (std::isinf(p) && p > 0); }

int64_t partials(const Tensors& tensors, bool per_tensor) {
  if (!per_tensor) return kMaxBlocks;
  int64_t most = 1;
  with_page(tensors, [&](auto& page) {
    for (size_t next = 0; next < tensors.size();) {
      next = fill(page, tensors, next);
      most = std::max<int64_t>(most, page.chunks);
    }
  });
  return most;
}

void grad_norm(const Tensors& tensors, double p, double max_norm, const NormResult& result,
               Queue queue) {
  if (!has_norm(p)) throw std::invalid_argument("p must be 1, 2 or infinity");
  const DeviceGuard guard(queue.device);
  NormLaunch args{result, max_norm, 0, next_ticket(static_cast<cudaStream_t>(queue.stream)),
                  true,   false};
  with_page(tensors, [&](auto& page) {
    using Page = std::decay_t<decltype(page)>;
    size_t next = 0;
    do {
      args.first_tensor = static_cast<int64_t>(next);
      next = fill(page, tensors, next);
      args.last_page = next == tensors.size();
      if (p == 2) {
        launch<norm_kernel<NormKind::kL2, Page>>(page.chunks, queue, page, args);
      } else if (p == 1) {
        launch<norm_kernel<NormKind::kL1, Page>>(page.chunks, queue, page, args);
      } else {
        launch<norm_kernel<NormKind::kMax, Page>>(page.chunks, queue, page, args);
      }
      args.first_page = false;
    } while (!args.last_page);
  });
}

void scale_grads(const Tensors& tensors, double max_norm, const KnownNorm& norm, Queue queue) {
  const DeviceGuard guard(queue.device);
  with_page(tensors, [&](auto& page) {
    using Page = std::decay_t<decltype(page)>;
    // The page read last is scaled first.
    for (size_t pages = (tensors.size() + Page::kCapacity - 1) / Page::kCapacity; pages > 0;) {
      fill(page, tensors, --pages * Page::kCapacity);
      if (page.chunks == 0) continue;
      launch<scale_kernel<Page>>(page.chunks, queue, page, norm, max_norm);
    }
  });
}

const char* why_not(int device) {
  int driver = 0, major = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "there is no driver";
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    return "the CUDA runtime sees no such device";
  }
  return major < 8 ? "the device is older than compute capability 8.0" : "";
}

}  // namespace fastclip::cuda
