// One launch reads every gradient of a model; scale.cu has what is then done to them.
//
// The table of tensors travels in the kernel's parameters, so nothing is copied to the device and
// nothing is allocated: a call can be captured in a graph, and never waits.
#include <cuda_runtime.h>

#include <atomic>
#include <cmath>
#include <stdexcept>
#include <type_traits>

#include "cuda/block.h"
#include "cuda/grad_norm.h"
#include "cuda/launch.h"
#include "cuda/numbers.h"
#include "cuda/reduce.h"
#include "cuda/scalars.h"
#include "cuda/walk.h"

namespace fastclip::cuda {
namespace {

struct NormLaunch {
  NormResult result;
  double max_norm;
  double p;
  const double* units;
  int64_t first_tensor;
  uint32_t ticket;
  bool first_page;
  bool last_page;
};

static_assert(sizeof(NormLaunch) <= kOtherBytes);

// Tickets are zero when no launch is under way. Launches outside graphs take turns on the first
// half, far more than can be under way at once; a captured launch owns its ticket for ever, since
// nobody knows when its graph will run. Where none is left, its ticket lies in the work buffer, and
// the graph clears it first.
constexpr uint32_t kTickets = 1 << 15;
constexpr uint32_t kInWork = 2 * kTickets;  // stands for a ticket in the work buffer
__device__ unsigned int g_tickets[2 * kTickets];

__device__ inline unsigned int* ticket_of(const NormLaunch& launch) {
  if (launch.ticket != kInWork) return &g_tickets[launch.ticket];
  return reinterpret_cast<unsigned int*>(launch.result.work + kSpare);
}

// What an order without a total adds up: |x / unit| to the power of p.
struct Power {
  double p;
  double unit;
};

template <NormKind kind>
__device__ double term(double x, Power power) {
  return kind == NormKind::kMin ? fabs(x) : pow(fabs(x) / power.unit, power.p);
}

// The same for the other orders, an element at a time in float64.
template <NormKind kind, class Number>
__device__ double reduce_slowly(const Piece& piece, Team team, Power power) {
  const Split<Number> x(piece.data, piece.numel);
  const uint4* body = x.body();
  double total = nothing<kind>();
#pragma unroll 1
  for (uint32_t i = team.thread; i < x.vectors; i += team.threads) {
    const Vector v = Vector::load(body + i);
#pragma unroll
    for (int n = 0; n < Number::kItems; ++n) {
      total = combine<kind>(total, term<kind>(Number::item(v.word, n), power));
    }
  }
  const auto* edge = x.edge(team.thread);
  if (edge != nullptr) total = combine<kind>(total, term<kind>(Number::real(*edge), power));
  return total;
}

template <NormKind kind, class Number>
__device__ double reduce_as(const Piece& piece, Team team, Power power) {
  if constexpr (kind == NormKind::kMin || kind == NormKind::kPower) {
    return reduce_slowly<kind, Number>(piece, team, power);
  } else {
    return reduce<kind, Number>(piece, team);
  }
}

template <NormKind kind>
__device__ double reduce_any(const Piece& piece, Team team, Power power) {
  switch (piece.dtype) {
    case DType::kF32: return reduce_as<kind, F32>(piece, team, power);
    case DType::kF64: return reduce_as<kind, F64>(piece, team, power);
    case DType::kBF16: return reduce_as<kind, BF16>(piece, team, power);
    default: return reduce_as<kind, F16>(piece, team, power);
  }
}

template <NormKind kind>
__device__ double root(double sum, Power power) {
  if (kind == NormKind::kL2) return sqrt(sum);
  if (kind != NormKind::kPower) return sum;
  const double whole = pow(sum, 1 / power.p);
  if (whole <= 1.7976931348623157e308) return power.unit * whole;
  const double half = pow(sum, 0.5 / power.p);  // the root may overflow where its product does not
  return power.unit * half * half;
}

__device__ inline Power power_of(const NormLaunch& launch, uint32_t tensor) {
  if (launch.units == nullptr) return {launch.p, 1};
  const double unit = launch.units[launch.first_tensor + tensor];
  return {launch.p, unit > 0 && isfinite(unit) ? unit : 1};
}

// The norm of each of the page's tensors, and in thread 0 the sum over all of them.
template <NormKind kind, class Page>
__device__ double sum_tensors(const Page& page, const NormLaunch& launch) {
  const double* partial = launch.result.work + kWorkHeader;
  const uint32_t lane = threadIdx.x % 32;
  double sum = nothing<kind>();
  for (uint32_t t = threadIdx.x / 32; t < page.tensors; t += kWarps) {
    double tensor = nothing<kind>();
    const uint32_t begin = t == 0 ? 0 : page.entry[t - 1].end, end = page.entry[t].end;
    if (begin != end) {
      const uint32_t last = block_of(page.chunks, end - 1);
      for (uint32_t b = block_of(page.chunks, begin) + lane; b <= last; b += 32) {
        tensor = combine<kind>(tensor, __ldcg(partial + t + b));
      }
    }
    tensor = warp_total<kind>(tensor);
    if (lane != 0) continue;
    launch.result.per_tensor[launch.first_tensor + t] = root<kind>(tensor, power_of(launch, t));
    sum = combine<kind>(sum, tensor);
  }
  return block_total<kind>(sum);
}

template <NormKind kind>
__device__ void write_total(const NormLaunch& launch, double sum) {
  const NormResult& result = launch.result;
  if (!launch.first_page) sum = combine<kind>(result.work[0], sum);
  result.work[0] = sum;
  if (!launch.last_page) return;
  const double norm = root<kind>(sum, {});
  result.work[1] = norm;
  result.work[2] = factor_of(launch.max_norm, norm);
  if (result.total != nullptr) store_number(result.total, result.total_dtype, norm);
}

// Partials: one a block, or where each tensor's norm is asked one for every tensor that a block has
// a part of. Those of tensor t and block b lie at t + b: from one to the next of them, in the order
// of chunks, at least one of the two is larger.
// A power needs more registers than kResident blocks leave a thread.
template <NormKind kind, class Page>
__global__ void __launch_bounds__(kThreads, kind == NormKind::kPower ? kResident - 1 : kResident)
    norm_kernel(const __grid_constant__ Page page, const __grid_constant__ NormLaunch launch) {
  double* partial = launch.result.work + kWorkHeader;
  const bool per_tensor = kind == NormKind::kPower || launch.result.per_tensor != nullptr;
  double total = nothing<kind>();
  walk<false>(page, [&](uint32_t tensor, const Piece& piece, Team team) {
    const Power power = kind == NormKind::kPower ? power_of(launch, tensor) : Power{};
    double sum = reduce_any<kind>(piece, team, power);
    if (!per_tensor) {
      total = combine<kind>(total, sum);
      return;
    }
    sum = team.is_block() ? block_total<kind>(sum) : warp_total<kind>(sum);
    if (team.thread == 0) partial[tensor + blockIdx.x] = sum;
  });
  let_next_launch_begin();
  if (!per_tensor) {
    total = block_total<kind>(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
  }
  if (!is_last_block(ticket_of(launch))) return;
  if (per_tensor) {
    total = sum_tensors<kind>(page, launch);
  } else {
    total = nothing<kind>();
    for (uint32_t b = threadIdx.x; b < gridDim.x; b += kThreads) {
      total = combine<kind>(total, __ldcg(partial + b));
    }
    total = block_total<kind>(total);
  }
  if (kind != NormKind::kPower && threadIdx.x == 0) write_total<kind>(launch, total);
}

uint32_t next_ticket(cudaStream_t stream, double* work) {
  static std::atomic<uint32_t> eager{0}, captured{0};
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status));
  if (status == cudaStreamCaptureStatusNone) return eager++ % kTickets;
  if (captured < kTickets) {
    const uint32_t ticket = captured++;
    if (ticket < kTickets) return kTickets + ticket;
  }
  check(cudaMemsetAsync(work + kSpare, 0, sizeof(double), stream));
  return kInWork;
}

template <NormKind kind>
void launch_norm(const Tensors& tensors, NormLaunch args, Queue queue) {
  const DeviceGuard guard(queue.device);
  args.ticket = next_ticket(static_cast<cudaStream_t>(queue.stream), args.result.work);
  args.first_page = true;
  with_page(tensors.size(), [&](auto& page) {
    using Page = std::decay_t<decltype(page)>;
    size_t next = 0;
    do {  // once for an empty list, too, whose norm is 0
      args.first_tensor = static_cast<int64_t>(next);
      next = fill(page, tensors, next);
      args.last_page = next == tensors.size();
      launch<norm_kernel<kind, Page>>(page.chunks, false, queue, page, args);
      args.first_page = false;
    } while (!args.last_page);
  });
}

}  // namespace

bool has_total(double p) { return p == 1 || p == 2 || std::isinf(p); }

int64_t partials(const Tensors& tensors) {
  return kMaxBlocks + std::min<int64_t>(LargePage::kCapacity, tensors.size());
}

void grad_norm(const Tensors& tensors, double p, double max_norm, const NormResult& result,
               const double* units, Queue queue) {
  if (!(p != 0 && p == p)) throw std::invalid_argument("p must be a number other than 0");
  const NormLaunch args{result, max_norm, p, units, 0, 0, true, false};
  if (p == 2) return launch_norm<NormKind::kL2>(tensors, args, queue);
  if (p == 1) return launch_norm<NormKind::kL1>(tensors, args, queue);
  if (p == HUGE_VAL) return launch_norm<NormKind::kMax>(tensors, args, queue);
  if (p == -HUGE_VAL) return launch_norm<NormKind::kMin>(tensors, args, queue);
  if (result.per_tensor == nullptr || result.total != nullptr) {
    throw std::invalid_argument("an order other than 1, 2, infinity has norms of tensors alone");
  }
  launch_norm<NormKind::kPower>(tensors, args, queue);
}

std::string why_not(int device) {
  int version = 0, devices = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "there is no driver";
  cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaSuccess && device >= devices) return "the CUDA runtime sees no such device";
  if (error == cudaSuccess) {
    const DeviceGuard guard(device);
    cudaFuncAttributes attributes;
    error = cudaFuncGetAttributes(&attributes, norm_kernel<NormKind::kL2, SmallPage>);
    if (error == cudaSuccess) return "";
  }
  cudaGetLastError();  // forgotten: the next call would be blamed for it
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "this build has no code for the device, of compute capability " + std::to_string(major) +
         "." + std::to_string(minor) + " (" + cudaGetErrorString(error) + ")";
}

}  // namespace fastclip::cuda
