// The OpenMP library that torch runs its loops on, found in the process: the core is linked to
// none.
#pragma once

namespace fastclip {

// libgomp's functions, which libomp and libiomp5 have too; null where there is none to use.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;
  int (*binding)() = nullptr;  // 0 where threads go where they like
  int (*processors)() = nullptr;

  explicit operator bool() const { return parallel && thread_number && binding && processors; }
};

// For the calling thread: OpenMP has a team for each that asks, and torch's is that of the main
// thread, nearly always. None in a forked process, whose parent kept the threads.
OpenMP openmp();

}  // namespace fastclip
