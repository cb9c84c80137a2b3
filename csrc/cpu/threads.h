// How work over a list of tensors is spread over OpenMP's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/vector/float_mode.h"
#include "openmp.h"

namespace fastclip::cpu {

// Waking a sleeping thread takes about 90 us, in which one thread reads this much from cache.
constexpr int64_t kSerialBytes = 6 * 1024 * 1024;

inline int threads_for(int64_t tasks) {  // torch.set_num_threads sets omp's maximum
  return static_cast<int>(std::clamp<int64_t>(tasks, 1, max_threads()));
}

// Calls `work` with every thread's number and how many there are; all round and flush denormals as
// the caller does. One needs no team of libgomp's.
template <class F>
void run(int threads, F work) {
  if (threads <= 1) return work(0, 1);
  const uint64_t mode = float_mode();
#pragma omp parallel num_threads(threads)
  {
    const FloatModeOf same(mode);
    work(omp_get_thread_num(), omp_get_num_threads());
  }
}

}  // namespace fastclip::cpu
