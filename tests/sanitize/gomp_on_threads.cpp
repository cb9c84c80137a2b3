// The part of libgomp that the kernels call, on std::thread, for the build under ThreadSanitizer.
//
// libgomp synchronises with futexes that ThreadSanitizer does not see, so every parallel loop would
// be reported. Threads, mutexes and condition variables it does see: a region's threads are started
// and joined here, and nothing else orders them but its barriers. Iteration i of a dynamic loop
// goes to thread i modulo the team's size: an order that a real schedule may take as well, that
// puts neighbours on different threads, and that shares no counter which would order them.
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr int kMaxThreads = 4;  // on any machine: what is ordered does not depend on its cores

struct Team {
  explicit Team(int size) : size(size) {}

  void barrier() {
    std::unique_lock<std::mutex> lock(mutex);
    const long mine = generation;
    if (++arrived == size) {
      arrived = 0;
      ++generation;
      all_here.notify_all();
    } else {
      all_here.wait(lock, [&] { return generation != mine; });
    }
  }

  const int size;
  int arrived = 0;
  long generation = 0;
  std::mutex mutex;
  std::condition_variable all_here;
};

struct Place {
  Team* team = nullptr;
  int thread = 0;
  long next = 0, end = 0, step = 0, chunk = 0;  // of the loop this thread is in
};
thread_local Place place;

void run(void (*body)(void*), void* data, Team* team, int thread) {
  const Place before = place;
  place = Place{};
  place.team = team;
  place.thread = thread;
  body(data);
  place = before;
}

bool next_chunk(long* start, long* end) {
  if (place.step > 0 ? place.next >= place.end : place.next <= place.end) return false;
  const long last = place.next + place.step * place.chunk;
  *start = place.next;
  *end = (place.step > 0) == (last < place.end) ? last : place.end;
  place.next += place.step * place.chunk * (place.team ? place.team->size : 1);
  return true;
}

}  // namespace

extern "C" {

int omp_get_max_threads() { return place.team ? 1 : kMaxThreads; }
int omp_get_thread_num() { return place.thread; }
int omp_get_num_threads() { return place.team ? place.team->size : 1; }
int omp_get_num_procs() { return kMaxThreads; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned wanted, unsigned) {
  const int size = place.team ? 1 : wanted ? static_cast<int>(wanted) : kMaxThreads;
  Team team(size);
  std::vector<std::thread> others;
  for (int i = 1; i < size; ++i) others.emplace_back(run, body, data, &team, i);
  run(body, data, &team, 0);
  for (std::thread& other : others) other.join();
}

void GOMP_barrier() {
  if (place.team) place.team->barrier();
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* from,
                                          long* to) {
  place.next = start + step * chunk * place.thread;
  place.end = end;
  place.step = step;
  place.chunk = chunk;
  return next_chunk(from, to);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* from, long* to) { return next_chunk(from, to); }

void GOMP_loop_end() { GOMP_barrier(); }
void GOMP_loop_end_nowait() {}

}  // extern "C"
