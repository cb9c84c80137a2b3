#include "threads/count.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#include "threads/openmp.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace fastclip {
namespace {

thread_local int torch_threads = 0;

int affinity() {
  // Where OpenMP has bound this thread to one processor, the others of its team have theirs.
  if (const OpenMP team = openmp(); team && team.binding() != 0) return team.processors();
#if defined(__linux__)
  cpu_set_t set;  // of 1024 processors; where there are more the call fails
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

double least(double a, double b) { return a == 0 || (b != 0 && b < a) ? b : a; }

// "max 100000" or "150000 100000", as in cpu.max.
double quota_of(std::istream& file) {
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  const double value = std::atof(quota.c_str());
  return value > 0 ? value / period : 0;  // cgroup v1 writes -1 for none
}

double quota_in(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  if (file) return quota_of(file);
  std::ifstream quota(folder + "/cpu.cfs_quota_us"), period(folder + "/cpu.cfs_period_us");
  std::stringstream both;
  if (quota && period) both << quota.rdbuf() << ' ' << period.rdbuf();
  return quota_of(both);
}

// The least quota of this process's control group and of those that it lies in.
double quota(const std::string& root) {
  double found = 0;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/path" or "4:cpu,cpuacct:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) {
      continue;
    }
    const std::string mount = root + "/sys/fs/cgroup" + (controllers.empty() ? "" : "/cpu");
    std::string path = line.substr(second + 1);
    for (;;) {
      found = least(found, quota_in(mount + path));
      if (path.empty() || path == "/") break;
      path.erase(path.rfind('/'));
    }
    found = least(found, quota_in(mount));
  }
  return found;
}

}  // namespace

void set_torch_threads(int threads) { torch_threads = threads; }

ThreadLimits thread_limits(const std::string& root) {
  return {torch_threads, affinity(), quota(root)};
}

int max_threads() {
  static const double granted = quota("");
  double threads = least(torch_threads, affinity());
  threads = least(threads, std::ceil(granted));
  return std::max(1, static_cast<int>(threads));
}

bool fewer_than_torch() { return max_threads() < torch_threads; }

}  // namespace fastclip
