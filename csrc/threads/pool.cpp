#include "threads/pool.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "threads/team.h"

namespace fastclip {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// A thread waits so long for more work before it sleeps: waking one costs some 50 us, and two
// passes over one list follow each other at once. Longer, and it takes the processor from the loop
// of torch's that comes next.
constexpr microseconds kSpin{100};
// A waiting thread that lost the processor for so long shares it with someone, ...
constexpr microseconds kLost{200};
// ... and for so long afterwards sleeps at once: to the scheduler, one that spins is busy, and
// would not get the processor when it has work.
constexpr std::chrono::milliseconds kPolite{500};
// The caller waits so long for what another has begun (a piece takes about 10 us) before it sleeps.
constexpr microseconds kWait{30};
// A caller that waited longer than it worked, and longer than any wake-up takes, has met a thread
// that lost the processor with a piece begun. Its next regions run on it alone: one call in so many
// finds out whether that is over, and the 90th percentile does not see it.
constexpr microseconds kLongWait{300};
constexpr int kAlone = 15;
constexpr int kChildren = 8;  // that each thread wakes

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

class Pool {
 public:
  // False where another call has the pool, or this one shall do without.
  bool run(int threads, void (*body)(void*, int), void* context) {
    if (taken_.exchange(true, std::memory_order_acquire)) return false;
    if (alone_ > 0) {
      --alone_;
      taken_.store(false, std::memory_order_release);
      return false;
    }
    grow(threads - 1);
    body_ = body;
    context_ = context;
    threads_ = threads;
    const uint64_t generation = state_.load() >> 32;
    state_.store((generation + 1) << 32 | kOpen);
    wake_children(0);
    const Closing closing{this, Clock::now()};  // whatever the body throws
    body(context, 0);
    return true;
  }

 private:
  // The state is the number of the region, whether it is open, and how many threads are in it.
  static constexpr uint64_t kOpen = uint64_t{1} << 31;
  static constexpr uint64_t kInside = kOpen - 1;

  struct alignas(128) Worker {
    int thread = 0;
    uint64_t seen = 0;  // the last region that it was in
    std::atomic<bool> sleeps{false};
    std::mutex mutex;
    std::condition_variable woken;
    Clock::time_point polite_until{};
  };

  struct Closing {
    Pool* pool;
    Clock::time_point start;
    ~Closing() {
      const Clock::time_point worked = Clock::now();
      pool->close();
      const auto waited = Clock::now() - worked;
      if (waited > kLongWait && waited > worked - start) pool->alone_ = kAlone;
      pool->taken_.store(false, std::memory_order_release);
    }
  };

  void grow(int workers) {
    if (static_cast<int>(workers_.size()) >= workers) return;
    sigset_t all, before;  // Python's signals are for its own threads
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      while (static_cast<int>(workers_.size()) < workers) {
        Worker& worker = workers_.emplace_back();
        worker.thread = static_cast<int>(workers_.size());
        worker.seen = state_.load() >> 32;
        std::thread([this, &worker] { work(worker); }).detach();
      }
    } catch (const std::system_error&) {  // no more threads are to be had: those there are do it
      workers_.pop_back();
    } catch (const std::bad_alloc&) {  // of a worker's place
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  [[noreturn]] void work(Worker& worker) {
    for (;;) {
      await(worker);
      uint64_t state = state_.load();
      while (is_new(state, worker) && !state_.compare_exchange_weak(state, state + 1)) {
      }
      if (!is_new(state, worker)) continue;
      worker.seen = state >> 32;
      if (worker.thread < threads_) {
        wake_children(worker.thread);
        body_(context_, worker.thread);
      }
      const uint64_t before = state_.fetch_sub(1);
      if ((before & (kOpen | kInside)) == 1) {  // closed, and this was the last
        const std::lock_guard<std::mutex> lock(mutex_);
        left_.notify_one();
      }
    }
  }

  static bool is_new(uint64_t state, const Worker& worker) {
    return (state & kOpen) != 0 && state >> 32 != worker.seen;
  }

  // Returns when there may be work.
  void await(Worker& worker) {
    const Clock::time_point start = Clock::now();
    for (Clock::time_point last = start; last >= worker.polite_until && last - start < kSpin;) {
      for (int i = 0; i < 16; ++i) {
        if (is_new(state_.load(std::memory_order_relaxed), worker)) return;
        pause();
      }
      const Clock::time_point now = Clock::now();
      if (now - last > kLost) worker.polite_until = now + kPolite;
      last = now;
    }
    std::unique_lock<std::mutex> lock(worker.mutex);
    for (;;) {  // whoever wakes it takes the flag down, and it may come too late
      worker.sleeps.store(true);
      if (is_new(state_.load(), worker)) break;
      worker.woken.wait(lock);
    }
    worker.sleeps.store(false);
  }

  // A tree: on a machine of many processors, one thread would take long to wake all.
  void wake_children(int thread) {
    const int first = kChildren * thread;
    const int there = static_cast<int>(workers_.size());
    for (int i = first; i < first + kChildren && i < threads_ - 1 && i < there; ++i) {
      Worker& worker = workers_[i];
      if (!worker.sleeps.exchange(false)) continue;
      {
        const std::lock_guard<std::mutex> lock(worker.mutex);
      }
      worker.woken.notify_one();
    }
  }

  void close() {
    state_.fetch_and(~kOpen);
    const auto alone = [this] { return (state_.load() & kInside) == 0; };
    const Clock::time_point start = Clock::now();
    while (!alone()) {
      for (int i = 0; i < 16 && !alone(); ++i) pause();
      if (Clock::now() - start < kWait) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      left_.wait(lock, alone);
    }
  }

  alignas(128) std::atomic<uint64_t> state_{0};
  alignas(128) std::atomic<bool> taken_{false};
  // Written before the region opens, and read inside.
  void (*body_)(void*, int) = nullptr;
  void* context_ = nullptr;
  int threads_ = 0;
  int alone_ = 0;  // regions that shall run on their caller alone; whoever has the pool writes it
  std::deque<Worker> workers_;  // stay where they are
  std::mutex mutex_;
  std::condition_variable left_;
};

// Never deleted: its threads may outlive whatever a process tears down at its end.
std::atomic<Pool*> pool{nullptr};

// A forked child has none of the threads, and locks as they were.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });

Pool& the_pool() {
  Pool* found = pool.load();
  if (found != nullptr) return *found;
  Pool* made = new Pool;
  if (pool.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

}  // namespace

void on_threads(int threads, void (*body)(void*, int), void* context) {
  if (threads > 1 && has_team()) return on_team(threads, body, context);
  if (threads > 1 && the_pool().run(threads, body, context)) return;
  body(context, 0);
}

}  // namespace fastclip
