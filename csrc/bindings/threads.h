// How many threads the loops may run on, which torch says, and who else may run meanwhile.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "threads/count.h"

namespace fastclip {

namespace py = pybind11;

// From now on `get_num_threads` is asked: torch's.
void bind_threads(py::object get_num_threads);

// Asks it, for the loops that this thread is about to run. Needs the GIL.
void ask_torch_threads();

// Releases the GIL for the length of a block, or from release() to its end. At the end of the
// process Python ends a thread that takes the GIL back, by unwinding it (until 3.14), and a
// destructor that may not throw, as pybind11's, would abort the process.
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
  ~Unlocked() noexcept(false) {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }

  void release() { state_ = PyEval_SaveThread(); }

 private:
  PyThreadState* state_ = nullptr;
};

// {"torch": ..., "affinity": ..., "quota": ..., "used": ...}; of the system below `root`.
py::dict thread_limits_of(const std::string& root);

}  // namespace fastclip
