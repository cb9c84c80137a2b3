// OpenMP, or one thread where a build has none. Static, for files compiled per level: isa.h.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#else
static inline int omp_get_max_threads() { return 1; }
static inline int omp_get_num_threads() { return 1; }
static inline int omp_get_num_procs() { return 1; }
static inline int omp_get_thread_num() { return 0; }
#endif

namespace fastclip {

// How many threads a loop may have: what torch.set_num_threads set last. One in a forked child:
// libgomp would wait for threads that only the parent has.
int max_threads();

}  // namespace fastclip
