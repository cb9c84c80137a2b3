#include "threads/openmp.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstring>
#include <string>

namespace fastclip {

#if defined(__linux__) && !defined(__SANITIZE_THREAD__)  // which sees no barrier of OpenMP's

namespace {

int find_torch(dl_phdr_info* info, size_t, void* path) {
  const char* name = info->dlpi_name == nullptr ? "" : info->dlpi_name;
  if (std::strstr(name, "libtorch_cpu.so") == nullptr) return 0;
  *static_cast<std::string*>(path) = name;
  return 1;
}

template <class F>
void look_up(F& function, void* library, const char* name) {
  function = reinterpret_cast<F>(dlsym(library, name));
}

OpenMP found_in(void* library) {
  OpenMP found;
  look_up(found.parallel, library, "GOMP_parallel");
  look_up(found.thread_number, library, "omp_get_thread_num");
  look_up(found.binding, library, "omp_get_proc_bind");
  look_up(found.processors, library, "omp_get_num_procs");
  return found;
}

// As the loader binds torch's own calls: what is there for all, such as a library that the user
// has preloaded, else what torch is linked to. Others may be in the process.
OpenMP find() {
  if (const OpenMP found = found_in(RTLD_DEFAULT)) return found;
  std::string path;
  dl_iterate_phdr(find_torch, &path);
  void* const torch = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (torch == nullptr) return {};
  const OpenMP found = found_in(torch);
  dlclose(torch);
  return found ? found : OpenMP{};
}

bool forked = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

bool is_main_thread() {
  static thread_local const bool found = syscall(SYS_gettid) == getpid();
  return found;
}

}  // namespace

OpenMP openmp() {
  static const OpenMP found = find();
  return forked || !is_main_thread() ? OpenMP{} : found;
}

#else

OpenMP openmp() { return {}; }

#endif

}  // namespace fastclip
