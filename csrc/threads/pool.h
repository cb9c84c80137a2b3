// Work on several threads: torch's where this thread has them (team.h), else those of a pool of the
// core's own. There the caller works too, and waits for nothing but what another thread has begun.
#pragma once

namespace fastclip {

// Calls body(context, 0) on this thread, and body(context, t) for 0 < t < threads on those others
// that come before it is done. Returns when every call has. So `body` takes its work piece by
// piece, as shares.h does, and one call of it does all that no other has taken. It may not throw on
// another thread. While one call has the pool, another's body runs on its caller alone; so do the
// bodies of a few regions after one in which the caller waited longer than it worked.
void on_threads(int threads, void (*body)(void* context, int thread), void* context);

}  // namespace fastclip
