#include "grad_norm.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "grad_norm_kernels.h"

namespace fastclip::cpu {
namespace {

void reduce_chunks(const Tasks& tasks, const NormOrder* orders, int64_t order_count,
                   long double* partial) {
  FASTCLIP_DISPATCH(reduce_chunks(tasks, orders, order_count, partial))
}

void scale_chunks(const Tasks& tasks, double factor){FASTCLIP_DISPATCH(scale_chunks(tasks, factor))}

NormKind kind_of(double p) {
  if (p == 2) return NormKind::kL2;
  if (p == 1) return NormKind::kL1;
  if (std::isinf(p)) return p > 0 ? NormKind::kMax : NormKind::kMin;
  return NormKind::kPower;
}

// Waking a sleeping thread takes about 90 us, in which one thread reads this much from cache.
constexpr int64_t kSerialBytes = 6 * 1024 * 1024;

Tasks tasks_of(const TensorList& list) {
  const int64_t count = static_cast<int64_t>(list.tasks().size()) - 1;
  const bool small = list.bytes() < kSerialBytes;  // torch.set_num_threads sets omp's maximum
  const int threads = small ? 1 : static_cast<int>(std::min<int64_t>(omp_get_max_threads(), count));
  return {list.chunks().data(), list.tasks().data(), count, threads};
}

// Sums of powers, or extremes, as they are gathered from chunks to tensors to the whole list.
class Gather {
 public:
  Gather(NormKind kind, double p)
      : kind_(kind), p_(p), value_(kind == NormKind::kMin ? kInfinity : 0.0L) {}

  void add(long double value) {
    const bool extreme = kind_ == NormKind::kMax || kind_ == NormKind::kMin;
    if (!extreme) {
      value_ += value;
    } else if (std::isnan(value) || (kind_ == NormKind::kMax ? value > value_ : value < value_)) {
      value_ = std::isnan(value_) ? value_ : value;
    }
  }

  long double value() const { return value_; }

  double norm() const {
    if (kind_ == NormKind::kL2) return static_cast<double>(std::sqrt(value_));
    if (kind_ == NormKind::kPower)
      return static_cast<double>(std::pow(value_, 1 / (long double)p_));
    return static_cast<double>(value_);
  }

 private:
  static constexpr long double kInfinity = std::numeric_limits<long double>::infinity();
  NormKind kind_;
  double p_;
  long double value_;
};

}  // namespace

void grad_norm(const TensorList& list, const std::vector<double>& orders, double* total,
               double* per_tensor) {
  std::vector<NormOrder> kinds;
  for (double p : orders) kinds.push_back({kind_of(p), p});
  const std::vector<Chunk>& chunks = list.chunks();
  const size_t tensors = list.tensors().size();
  std::vector<long double> partial(chunks.size() * kinds.size());
  reduce_chunks(tasks_of(list), kinds.data(), kinds.size(), partial.data());

  for (size_t o = 0; o < kinds.size(); ++o) {
    Gather all(kinds[o].kind, kinds[o].p);
    size_t c = 0;
    for (size_t t = 0; t < tensors; ++t) {
      Gather tensor(kinds[o].kind, kinds[o].p);
      for (; c < chunks.size() && chunks[c].tensor == static_cast<int32_t>(t); ++c) {
        tensor.add(partial[c * kinds.size() + o]);
      }
      all.add(tensor.value());
      if (per_tensor != nullptr) per_tensor[o * tensors + t] = tensor.norm();
    }
    total[o] = all.norm();
  }
}

void scale_grads(const TensorList& list, double factor) {
  Tasks tasks = tasks_of(list);
  if (tasks.threads > 1 && list.has_repeats()) tasks.threads = 1;
  scale_chunks(tasks, factor);
}

}  // namespace fastclip::cpu
