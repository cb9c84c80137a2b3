#include "openmp.h"

#if __has_include(<pthread.h>)
#include <pthread.h>
#endif

namespace fastclip {
namespace {

bool forked = false;

#if __has_include(<pthread.h>)
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

int max_threads() { return forked ? 1 : omp_get_max_threads(); }

}  // namespace fastclip
