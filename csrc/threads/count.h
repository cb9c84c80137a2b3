// How many threads a call may run on.
#pragma once

#include <string>

namespace fastclip {

// What bounds them; 0 where that says nothing.
struct ThreadLimits {
  int torch;     // torch.get_num_threads(), as the calling thread was last told
  int affinity;  // processors that this thread, or the OpenMP team that it leads, may run on
  double quota;  // processors' worth of time that the container grants: cgroups' cpu.max
};

// Tells the calling thread what torch.get_num_threads() says now.
void set_torch_threads(int threads);

// `root` is where /proc and /sys lie.
ThreadLimits thread_limits(const std::string& root = "");

// The least of the three, and at least 1. The quota is read once: it changes with the container.
int max_threads();

// Whether processors or quota do not suffice for as many threads as torch's.
bool fewer_than_torch();

}  // namespace fastclip
