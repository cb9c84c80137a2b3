// Tasks that one thread makes while others do them: those take the first, and when all are made
// their maker takes the last. So what a thread has read lies together, for the pass that writes.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace fastclip::cpu {

class TaskQueue {
 public:
  // Tasks up to `count` are made.
  void publish(int64_t count) {
    if (count == published_) return;  // the others poll the range's cache line all the time
    range_.fetch_add(static_cast<uint64_t>(count - published_) << 32, std::memory_order_release);
    published_ = count;
  }

  // No more are to come.
  void close() { closed_.store(true, std::memory_order_release); }

  // The first task; waits for one. Negative when there is none any more.
  int64_t take_first() {
    for (int64_t waits = 0;; ++waits) {
      const bool closed = closed_.load(std::memory_order_acquire);
      uint64_t range = range_.load(std::memory_order_acquire);
      while (first(range) < end(range)) {
        if (take(range, range + 1)) return first(range);
      }
      if (closed) return -1;
      waits < kSpins ? pause() : std::this_thread::yield();
    }
  }

  // The last task, for the thread that has made them all. Negative when there is none any more.
  int64_t take_last() {
    uint64_t range = range_.load(std::memory_order_acquire);
    while (first(range) < end(range)) {
      if (take(range, range - (uint64_t{1} << 32))) return end(range) - 1;
    }
    return -1;
  }

 private:
  static constexpr int64_t kSpins = 4096;  // some 60 us; then another may need the processor

  static int64_t first(uint64_t range) { return range & 0xffffffffu; }
  static int64_t end(uint64_t range) { return range >> 32; }

  bool take(uint64_t& range, uint64_t rest) {
    return range_.compare_exchange_weak(range, rest, std::memory_order_acq_rel,
                                        std::memory_order_acquire);
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  std::atomic<uint64_t> range_{0};  // the first task not taken, and above it the end of them
  std::atomic<bool> closed_{false};
  int64_t published_ = 0;
};

}  // namespace fastclip::cpu
