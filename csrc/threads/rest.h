// When to leave an OpenMP team alone.
#pragma once

#include <chrono>

namespace fastclip {

// OpenMP waits for every thread at the end of a region, also for one that has nothing to do there:
// beside busy processes, until a time slice is over. To the scheduler a thread that spins is busy,
// and must not have the processor when it is needed.
class Rest {
 public:
  using Clock = std::chrono::steady_clock;

  // Whether the next region is to do without the team; asked once for each.
  bool now(Clock::time_point time) {
    if (left_ == 0 && time >= until_) return false;
    if (left_ > 0) --left_;
    return true;
  }

  // How long the caller of a region worked in it, and then waited for the others, until `time`.
  void judge(Clock::duration worked, Clock::duration waited, Clock::time_point time) {
    const bool was_long = waited >= kLongWait && 4 * waited >= worked;
    if (was_long) {
      left_ = again_ ? kRegions : kRegionsAtFirst;
      until_ = time + left_ * waited;
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

}  // namespace fastclip
