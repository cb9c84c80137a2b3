// One launch clips every unit of a model's gradients.
//
// A block has a run of units, cut by what they cost to read. Long ones are read by all of its
// threads together, the others by a warp each, eight at a time. A unit is one block's: its weights
// and its gradient are read once each, and only where it is over its limit is the gradient read
// again, from a cache where it fits one, and written.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/block.h"
#include "cuda/launch.h"
#include "cuda/numbers.h"
#include "cuda/page.h"
#include "cuda/reduce.h"
#include "cuda/rewrite.h"
#include "cuda/unit_clip.h"
#include "cuda/walk.h"

namespace fastclip::cuda {
namespace {

constexpr double kGradFloor = 1e-6;  // of the norm that divides, as in the published code

// What a warp has in flight: a round of its loads. A block's is kWarps of them.
constexpr uint32_t kRoundBytes = 32 * kInFlight * 16;

// A block would leave half of its loads undone in a unit of this size, and its warps wait for each
// other at every unit; longer ones would keep a warp for long.
constexpr uint32_t kWarpBytes = kRoundBytes * kWarps / 2;

// Of a unit: the rounds of loads, and one for what comes after them.
constexpr __host__ __device__ uint32_t cost_of(uint32_t bytes) {
  return 1 + (bytes + kRoundBytes - 1) / kRoundBytes;
}

// So that sizes and places fit 32 bits, and what a warp steps past a page's end too.
constexpr int64_t kMaxUnitBytes = int64_t{1} << 30;
constexpr int64_t kMaxCost = int64_t{1} << 31;

struct UnitEntry {
  const void* weight;
  void* grad;
  uint32_t end;   // the cost of the pairs up to and with this one
  uint32_t size;  // elements of a unit, and in the low bits their dtype

  __host__ __device__ DType dtype() const {
    return static_cast<DType>(size & ((1 << kDTypeBits) - 1));
  }
  __host__ __device__ uint32_t elements() const { return size >> kDTypeBits; }
  __host__ __device__ uint32_t bytes() const {
    return elements() * (dtype() == DType::kF32 ? 4 : 2);
  }
  __host__ __device__ uint32_t cost() const { return cost_of(bytes()); }
  __host__ __device__ bool is_long() const { return bytes() > kWarpBytes; }
};

using SmallUnitPage = PageOf<UnitEntry, 167>;
using LargeUnitPage = PageOf<UnitEntry, 1361>;
static_assert(sizeof(UnitRule) <= kOtherBytes);
static_assert(sizeof(SmallUnitPage) + kOtherBytes <= 4096);
static_assert(sizeof(LargeUnitPage) + kOtherBytes <= 32764);

struct Unit {
  const void* weight;
  void* grad;
  uint32_t size;
  DType dtype;
};

__device__ inline Unit unit_of(const UnitEntry& entry, uint32_t unit) {
  const int64_t skipped = static_cast<int64_t>(unit) * entry.bytes();
  return {static_cast<const char*>(entry.weight) + skipped,
          static_cast<char*>(entry.grad) + skipped, entry.elements(), entry.dtype()};
}

// Calls `use(unit, team)` for every unit that begins in this block's share and that this thread has
// a part in. All threads of a block come to each long unit, in the same order; of short ones each
// warp takes every eighth, from pair to pair. Between two units a thread keeps where it is alone,
// since `use` wants the registers.
template <class Page, class Use>
__device__ void walk_units(const Page& page, Use use) {
  const uint32_t from = share(page.chunks, blockIdx.x), to = share(page.chunks, blockIdx.x + 1);
  if (from == to) return;
  const uint32_t my_warp = threadIdx.x / 32;
  uint32_t pair = tensor_of(page, from), unit = page.entry[pair].is_long() ? 0 : my_warp;
  const uint32_t first = pair == 0 ? 0 : page.entry[pair - 1].end;
  unit += (from - first + page.entry[pair].cost() - 1) / page.entry[pair].cost();
#pragma unroll 1
  for (;;) {
    const UnitEntry entry = page.entry[pair];
    const uint32_t begin = pair == 0 ? 0 : page.entry[pair - 1].end, cost = entry.cost();
    const bool is_long = entry.is_long();
    if (begin + unit * cost < min(to, entry.end)) {
      const Team team{is_long ? threadIdx.x : threadIdx.x % 32, is_long ? kThreads : 32u};
      use(unit_of(entry, unit), team);
      unit += is_long ? 1 : kWarps;
      continue;
    }
    if (to <= entry.end) return;
    ++pair;
    if (page.entry[pair].is_long()) {
      unit = 0;
    } else {
      unit = is_long ? my_warp : unit - (entry.end - begin) / cost;
    }
  }
}

// The factor of a unit from its sums of squares; 1 where it is within its limit.
__device__ inline double unit_factor(double weight_sum, double grad_sum, UnitRule rule) {
  const double weight = sqrt(weight_sum), grad = sqrt(grad_sum);
  const double limit = rule.clipping * (weight < rule.eps ? rule.eps : weight);  // NaN stays
  if (grad <= limit && grad < HUGE_VAL) return 1;
  return limit / (grad < kGradFloor ? kGradFloor : grad);
}

// The same from each thread's parts of the sums, in all threads of the team.
__device__ inline double team_factor(double weight_part, double grad_part, Team team,
                                     UnitRule rule) {
  __shared__ double of_block;
  if (!team.is_block()) {
    const double weight = warp_total<NormKind::kL2>(weight_part);
    const double grad = warp_total<NormKind::kL2>(grad_part);
    return __shfl_sync(0xffffffffu, unit_factor(weight, grad, rule), 0);
  }
  const double weight = block_total<NormKind::kL2>(weight_part);
  const double grad = block_total<NormKind::kL2>(grad_part);
  if (team.thread == 0) of_block = unit_factor(weight, grad, rule);
  __syncthreads();
  return of_block;
}

template <class Number>
__device__ void clip_unit(const Unit& unit, Team team, UnitRule rule) {
  double weight = 0, grad = 0;
#pragma unroll 1  // one loop over elements in the code, whose registers are all that is needed
  for (int turn = 0; turn < 2; ++turn) {
    void* data = turn == 0 ? const_cast<void*>(unit.weight) : unit.grad;
    weight = grad;
    grad = reduce<NormKind::kL2, Number>({data, unit.size, unit.dtype}, team);
  }
  const float factor = static_cast<float>(team_factor(weight, grad, team, rule));
  if (factor == 1) return;
  rewrite<Number>({unit.grad, unit.size, unit.dtype}, team, Scale<Number>{factor});
}

template <class Page>
__global__ void __launch_bounds__(kThreads, kResident)
    unit_kernel(const __grid_constant__ Page page, const __grid_constant__ UnitRule rule) {
  walk_units(page, [&](const Unit& unit, Team team) {
    switch (unit.dtype) {
      case DType::kF32: return clip_unit<F32>(unit, team, rule);
      case DType::kBF16: return clip_unit<BF16>(unit, team, rule);
      default: return clip_unit<F16>(unit, team, rule);
    }
  });
}

int64_t cost_of(const UnitPair& pair) {
  const int64_t bytes = pair.size * (pair.dtype == DType::kF32 ? 4 : 2);
  return pair.units * cost_of(static_cast<uint32_t>(bytes));
}

// The page that starts at pair `first`; returns where the next one starts.
template <class Page>
size_t fill(Page& page, const std::vector<UnitPair>& pairs, size_t first) {
  int64_t cost = 0;
  size_t p = first;
  for (; p < std::min(pairs.size(), first + Page::kCapacity); ++p) {
    const UnitPair& pair = pairs[p];
    if (cost + cost_of(pair) > kMaxCost) break;
    cost += cost_of(pair);
    page.entry[p - first] = {
        pair.weight, pair.grad, static_cast<uint32_t>(cost),
        static_cast<uint32_t>(pair.size << kDTypeBits) | static_cast<uint32_t>(pair.dtype)};
  }
  page.tensors = static_cast<uint32_t>(p - first);
  page.chunks = static_cast<uint32_t>(cost);
  return p;
}

}  // namespace

bool takes_units(const UnitPair& pair) {
  const bool known =
      pair.dtype == DType::kF32 || pair.dtype == DType::kBF16 || pair.dtype == DType::kF16;
  if (!known || pair.size * 4 > kMaxUnitBytes) return false;
  return pair.units <= kMaxCost / 2 && cost_of(pair) <= kMaxCost;
}

void clip_units(const std::vector<UnitPair>& pairs, UnitRule rule, Queue queue) {
  const DeviceGuard guard(queue.device);
  for_pages<SmallUnitPage, LargeUnitPage>(pairs, [&](auto& page) {
    using Page = std::decay_t<decltype(page)>;
    launch<unit_kernel<Page>>(page.chunks, false, queue, page, rule);
  });
}

}  // namespace fastclip::cuda
