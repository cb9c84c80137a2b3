#include "cpu/grad_norm/grad_norm.h"

#include <cxxabi.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <memory>

#include "cpu/grad_norm/task_queue.h"
#include "threads/shares.h"

namespace fastclip::cpu {
namespace {

void reduce_chunks(const Chunk* chunks, int64_t count, const NormOrder* orders, int64_t order_count,
                   Scaled* partial) {
  FASTCLIP_DISPATCH(reduce_chunks(chunks, count, orders, order_count, partial))
}

void scale_chunks(const Chunk* chunks, int64_t count, double factor) {
  FASTCLIP_DISPATCH(scale_chunks(chunks, count, factor))
}

void scale_task(const TensorList& list, int64_t task, double factor) {
  const int64_t begin = list.tasks()[task];
  scale_chunks(list.chunks().data() + begin, list.tasks()[task + 1] - begin, factor);
}

NormKind kind_of(double p) {
  if (p == 2) return NormKind::kL2;
  if (p == 1) return NormKind::kL1;
  if (std::isinf(p)) return p > 0 ? NormKind::kMax : NormKind::kMin;
  return NormKind::kPower;
}

// While it wakes a list is made: then this much is worth it, with what it costs to start a chunk.
constexpr int64_t kFollowBytes = 2 * 1024 * 1024;

// Sums of powers, or extremes, as they are gathered from chunks to tensors to the whole list.
class Gather {
 public:
  explicit Gather(NormOrder order) : order_(order), value_{0, 1} {
    if (order.kind == NormKind::kMin) value_.sum = std::numeric_limits<double>::infinity();
  }

  void add(Scaled value) {
    const double x = value.sum;
    if (order_.kind == NormKind::kMax || order_.kind == NormKind::kMin) {
      const bool better = order_.kind == NormKind::kMax ? x > value_.sum : x < value_.sum;
      if ((std::isnan(x) || better) && !std::isnan(value_.sum)) value_.sum = x;
      return;
    }
    const Scaled before = value_;
    value_ = plus(before, value, order_.p);
    if (value_.unit != before.unit) lost_ = 0;  // all that was there is little now
    if (before.unit != value.unit || !std::isfinite(value_.sum)) return;
    // What rounding took, kept aside: a list has up to millions of chunks.
    lost_ += before.sum >= x ? (before.sum - value_.sum) + x : (x - value_.sum) + before.sum;
  }

  void add(const Gather& other) {
    add(other.value_);
    if (value_.unit == other.value_.unit) lost_ += other.lost_;
  }

  double norm() const {
    const bool extreme = order_.kind == NormKind::kMax || order_.kind == NormKind::kMin;
    return extreme ? value_.sum : root({value_.sum + lost_, value_.unit}, order_.p);
  }

 private:
  NormOrder order_;
  Scaled value_;
  double lost_ = 0;  // in value_'s unit
};

}  // namespace

NormPass::NormPass(const std::vector<double>& orders) {
  for (double p : orders) orders_.push_back({kind_of(p), p});
}

int NormPass::followers(const TensorList& list, size_t tensors) {
  const int64_t chunks = std::max<int64_t>(1, list.chunks().size());
  const int64_t bytes = list.bytes() + kChunkOverheadBytes * chunks;
  const int64_t expected = bytes / chunks * static_cast<int64_t>(tensors);
  const bool worth = list.on_cpu() && expected >= kFollowBytes;
  return worth ? threads_for(expected / kTaskBytes) : 1;
}

void NormPass::read(const TensorList& list, int64_t task, size_t thread) {
  const int64_t begin = list.tasks()[task], count = list.tasks()[task + 1] - begin;
  const int64_t orders = static_cast<int64_t>(orders_.size());
  reduce_chunks(list.chunks().data() + begin, count, orders_.data(), orders,
                partial_.data() + begin * orders);
  before_[task] = last_[thread];
  last_[thread] = static_cast<int32_t>(task);
}

void NormPass::follow(const TensorList& list, int threads, const std::function<bool()>& more) {
  partial_.resize(list.room() * orders_.size());
  before_.resize(list.room() + 1);
  last_.assign(threads, -1);
  TaskQueue queue;
  std::exception_ptr error;
  run(threads, [&](int thread) {
    if (thread > 0) {
      for (int64_t task; (task = queue.take_first()) >= 0;) read(list, task, thread);
      return;
    }
    try {
      for (bool goes_on = true; goes_on;) {
        goes_on = more();
        queue.publish(static_cast<int64_t>(list.tasks().size()) - 1);
      }
#if defined(__GLIBCXX__)
    } catch (abi::__forced_unwind&) {  // Python ends this thread, with the process
      queue.close();
      throw;
#endif
    } catch (...) {
      error = std::current_exception();
    }
    queue.close();
    for (int64_t task; (task = queue.take_last()) >= 0;) read(list, task, thread);
  });
  if (error) std::rethrow_exception(error);
  before_.resize(list.tasks().size() - 1);
}

void NormPass::finish(const TensorList& list, double* total, double* per_tensor) {
  const std::vector<Chunk>& chunks = list.chunks();
  const size_t orders = orders_.size(), tensors = list.tensors().size();
  const int64_t first = static_cast<int64_t>(before_.size());
  const int64_t tasks = static_cast<int64_t>(list.tasks().size()) - 1;
  partial_.resize(chunks.size() * orders);
  before_.resize(tasks);
  const int threads = list.bytes() < kSerialBytes ? 1 : threads_for(tasks - first);
  last_.resize(std::max<size_t>(last_.size(), threads), -1);
  each_task(tasks - first, threads,
            [&](int64_t task, int thread) { read(list, first + task, thread); });

  for (size_t o = 0; o < orders; ++o) {
    Gather all(orders_[o]);
    size_t c = 0;
    for (size_t t = 0; t < tensors; ++t) {
      Gather tensor(orders_[o]);
      for (; c < chunks.size() && chunks[c].tensor == static_cast<int32_t>(t); ++c) {
        tensor.add(partial_[c * orders + o]);
      }
      all.add(tensor);
      if (per_tensor != nullptr) per_tensor[o * tensors + t] = tensor.norm();
    }
    total[o] = all.norm();
  }
}

void NormPass::scale(const TensorList& list, double factor) const {
  const bool threaded = last_.size() > 1 && !list.has_overlaps();  // else a product might be lost
  const int readers = static_cast<int>(last_.size());
  const auto heads = std::make_unique<std::atomic<int32_t>[]>(readers);
  for (int i = 0; i < readers; ++i) heads[i].store(last_[i], std::memory_order_relaxed);
  run(threaded ? readers : 1, [&](int thread) {
    for (int i = 0; i < readers; ++i) {  // its own, then what those read that did not come
      std::atomic<int32_t>& head = heads[(thread + i) % readers];
      for (int32_t task = head.load(); task >= 0;) {
        if (!head.compare_exchange_weak(task, before_[task])) continue;
        scale_task(list, task, factor);
        task = head.load();
      }
    }
  });
}

void scale_grads(const TensorList& list, double factor) {
  const int64_t tasks = static_cast<int64_t>(list.tasks().size()) - 1;
  const bool threaded = list.bytes() >= kSerialBytes && !list.has_overlaps();
  each_task(tasks, threaded ? threads_for(tasks) : 1,
            [&](int64_t task, int) { scale_task(list, tasks - 1 - task, factor); });
}

void scale_each(const TensorList& list, const double* factors) {
  const int64_t tasks = static_cast<int64_t>(list.tasks().size()) - 1;
  const bool threaded = list.bytes() >= kSerialBytes && !list.has_overlaps();
  each_task(tasks, threaded ? threads_for(tasks) : 1, [&](int64_t task, int) {
    for (int64_t c = list.tasks()[task]; c < list.tasks()[task + 1]; ++c) {
      const Chunk& chunk = list.chunks()[c];
      const double factor = factors[chunk.tensor];
      if (!(factor >= 1)) scale_chunks(&chunk, 1, factor);
    }
  });
}

}  // namespace fastclip::cpu
