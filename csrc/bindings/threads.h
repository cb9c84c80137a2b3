// How many threads the loops may run on, which torch says, and who else may run meanwhile.
#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <string>

#include "threads/count.h"

namespace fastclip {

namespace py = pybind11;

// From now on `get_num_threads` is asked: torch's.
void bind_threads(py::object get_num_threads);

// Asks it, for the loops that this thread is about to run. Needs the GIL.
void ask_torch_threads();

// Releases the GIL for the length of a block, or from release() to its end. At the end of the
// process Python ends a thread that takes the GIL back, by unwinding it (until 3.14): that would
// abort the process in a destructor, and release objects without the GIL further up. So the thread
// waits here for the end, as it does from 3.14 on.
class Unlocked {
 public:
  struct Later {};

  Unlocked() {
    ask_torch_threads();
    release();
  }
  explicit Unlocked(Later) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    if (state_ == nullptr) return;
#if defined(__GLIBCXX__)
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) pause();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

  void release() { state_ = PyEval_SaveThread(); }

 private:
  PyThreadState* state_ = nullptr;
};

// {"torch": ..., "affinity": ..., "quota": ..., "used": ...}; of the system below `root`.
py::dict thread_limits_of(const std::string& root);

}  // namespace fastclip
