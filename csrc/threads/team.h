// The OpenMP team of torch's own loops, borrowed. After each loop its threads spin for some
// milliseconds: they are there at once for what comes next, and threads of another pool would have
// to fight them for the processors.
#pragma once

namespace fastclip {

// Whether this thread has a team to borrow (openmp.h), with a processor for each of its threads.
bool has_team();

// Calls body(context, 0) on this thread and body(context, t) for 0 < t < threads on others of the
// team, and returns when every call has. `body` takes its work piece by piece (shares.h), and may
// not throw on another thread. Where the team has lately kept its caller waiting, the caller alone
// does all (rest.h).
void on_team(int threads, void (*body)(void* context, int thread), void* context);

}  // namespace fastclip
