#include "threads/team.h"

#include <exception>

#include "threads/count.h"
#include "threads/openmp.h"
#include "threads/rest.h"

namespace fastclip {
namespace {

using Clock = Rest::Clock;

struct Region {
  const OpenMP openmp;
  const int threads;
  void (*const body)(void*, int);
  void* const context;
  std::exception_ptr error;  // of the caller, which may not throw through OpenMP
  Clock::time_point done;
};

void run_region(void* data) {
  Region& region = *static_cast<Region*>(data);
  const int thread = region.openmp.thread_number();
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

bool has_team() { return openmp() && !fewer_than_torch(); }

void on_team(int threads, void (*body)(void*, int), void* context) {
  static Rest rest;  // the main thread's alone
  const Clock::time_point start = Clock::now();
  if (rest.now(start)) return body(context, 0);
  Region region{openmp(), threads, body, context, nullptr, {}};
  region.openmp.parallel(run_region, &region, 0, 0);  // as many as torch's: fewer would end some
  const Clock::time_point end = Clock::now();
  rest.judge(region.done - start, end - region.done, end);
  if (region.error) std::rethrow_exception(region.error);
}

}  // namespace fastclip
