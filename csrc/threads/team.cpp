#include "threads/team.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <chrono>
#include <cstring>
#include <exception>
#include <string>

#include "threads/count.h"

namespace fastclip {

#if defined(__linux__) && !defined(__SANITIZE_THREAD__)  // which sees no barrier of OpenMP's

namespace {

using Clock = std::chrono::steady_clock;

// The two functions that we need of the OpenMP library that torch is linked to; others may be in
// the process. libomp and libiomp5 have them too.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;
};

int find_torch(dl_phdr_info* info, size_t, void* path) {
  const char* name = info->dlpi_name == nullptr ? "" : info->dlpi_name;
  if (std::strstr(name, "libtorch_cpu.so") == nullptr) return 0;
  *static_cast<std::string*>(path) = name;
  return 1;
}

OpenMP find_openmp() {
  std::string path;
  dl_iterate_phdr(find_torch, &path);
  void* const torch = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (torch == nullptr) return {};
  OpenMP found;  // by torch's handle: in what it is linked to
  found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(torch, "GOMP_parallel"));
  found.thread_number =
      reinterpret_cast<decltype(found.thread_number)>(dlsym(torch, "omp_get_thread_num"));
  dlclose(torch);
  return found;
}

const OpenMP& openmp() {
  static const OpenMP found = find_openmp();
  return found;
}

bool forked = false;  // the team's threads stayed with the parent
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// OpenMP has a team for each thread that asks: torch's is that of the main thread, nearly always.
bool is_main_thread() {
  static thread_local const bool found = syscall(SYS_gettid) == getpid();
  return found;
}

// Whether to leave the team alone. OpenMP waits for every thread at the end of a region, also for
// one that has nothing to do there: beside busy processes, until a time slice is over. To the
// scheduler a thread that spins is busy, and must not have the processor when it is needed.
class Rest {
 public:
  bool now() {
    if (left_ == 0 && Clock::now() >= until_) return false;
    if (left_ > 0) --left_;
    return true;
  }

  void judge(Clock::duration worked, Clock::duration waited) {
    const bool was_long = waited >= kLongWait && 4 * waited >= worked;
    if (was_long) {
      left_ = again_ ? kRegions : kRegionsAtFirst;
      until_ = Clock::now() + left_ * waited;
    }
    again_ = was_long;
  }

 private:
  static constexpr std::chrono::microseconds kLongWait{1000};  // no wake-up takes as long
  // So many regions at least, that the 90th percentile does not see who waits; and so many times
  // the wait, that waiting takes little of the time. Once may be chance, on a quiet machine too.
  static constexpr int kRegions = 16, kRegionsAtFirst = 4;
  bool again_ = false;  // whether the last region waited
  int left_ = 0;
  Clock::time_point until_{};
};

struct Region {
  const int threads;
  void (*const body)(void*, int);
  void* const context;
  std::exception_ptr error;  // of this thread, which may not throw through OpenMP
  Clock::time_point done;
};

void run_region(void* data) {
  Region& region = *static_cast<Region*>(data);
  const int thread = openmp().thread_number();
  if (thread >= region.threads) return;
  if (thread > 0) return region.body(region.context, thread);
  try {
    region.body(region.context, 0);
  } catch (...) {
    region.error = std::current_exception();
  }
  region.done = Clock::now();
}

}  // namespace

bool has_team() {
  const bool found = openmp().parallel != nullptr && openmp().thread_number != nullptr;
  return found && !forked && is_main_thread() && !fewer_than_torch();
}

void on_team(int threads, void (*body)(void*, int), void* context) {
  static Rest rest;  // the main thread's alone
  if (rest.now()) return body(context, 0);
  Region region{threads, body, context, nullptr, {}};
  const Clock::time_point start = Clock::now();
  openmp().parallel(run_region, &region, 0, 0);  // as many as torch's: to change it costs threads
  rest.judge(region.done - start, Clock::now() - region.done);
  if (region.error) std::rethrow_exception(region.error);
}

void find_team() { openmp(); }

#else

bool has_team() { return false; }
void on_team(int, void (*body)(void*, int), void* context) { body(context, 0); }
void find_team() {}

#endif

}  // namespace fastclip
