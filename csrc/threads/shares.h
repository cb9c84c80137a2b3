// Work cut into tasks, and who takes which.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "cpu/vector/float_mode.h"
#include "threads/count.h"
#include "threads/pool.h"

namespace fastclip {

// Waking a sleeping thread takes about 90 us, in which one thread reads this much from cache.
constexpr int64_t kSerialBytes = 6 * 1024 * 1024;

inline int threads_for(int64_t tasks) {
  return static_cast<int>(std::clamp<int64_t>(tasks, 1, max_threads()));
}

// Calls `work` with the number of each thread that comes, 0 for this one (on_threads in pool.h);
// all round and flush denormals as the caller does.
template <class F>
void run(int threads, F work) {
  struct Call {
    F* work;
    uint64_t mode;
  } call{&work, cpu::float_mode()};
  const auto body = [](void* context, int thread) {
    const Call& call = *static_cast<Call*>(context);
    const cpu::FloatModeOf same(call.mode);
    (*call.work)(thread);
  };
  on_threads(threads, body, &call);
}

// Tasks 0 .. count in a share for each thread, which takes its first ones; whoever has none left
// takes the last of another's. So neighbours are read by one thread, and a thread that does not
// come leaves nothing undone.
class Shares {
 public:
  Shares(int64_t count, int threads) : threads_(threads), shares_(new Share[threads]) {
    for (int64_t t = 0; t < threads; ++t) {
      const uint64_t first = count * t / threads, end = count * (t + 1) / threads;
      shares_[t].range.store(end << 32 | first, std::memory_order_relaxed);
    }
  }

  // Negative when there is none any more.
  int64_t next(int thread) {
    std::atomic<uint64_t>& own = shares_[thread].range;
    uint64_t range = own.load(std::memory_order_relaxed);
    while (first(range) < end(range)) {
      if (own.compare_exchange_weak(range, range + 1)) return first(range);
    }
    for (int i = 1; i < threads_; ++i) {
      std::atomic<uint64_t>& other = shares_[(thread + i) % threads_].range;
      range = other.load(std::memory_order_relaxed);
      while (first(range) < end(range)) {
        if (other.compare_exchange_weak(range, range - (uint64_t{1} << 32))) return end(range) - 1;
      }
    }
    return -1;
  }

 private:
  static int64_t first(uint64_t range) { return range & 0xffffffffu; }
  static int64_t end(uint64_t range) { return range >> 32; }

  struct alignas(64) Share {
    std::atomic<uint64_t> range;
  };

  const int threads_;
  const std::unique_ptr<Share[]> shares_;
};

// Calls `work` with each of so many tasks, and the number of the thread that it runs on.
template <class F>
void each_task(int64_t count, int threads, F work) {
  Shares shares(count, threads);
  run(threads, [&](int thread) {
    for (int64_t task; (task = shares.next(thread)) >= 0;) work(task, thread);
  });
}

}  // namespace fastclip
