#include "tensors/overlap.h"

#include <stddef.h>

#include <algorithm>
#include <array>
#include <utility>

namespace fastclip {
namespace {

// Allocators mostly hand out addresses in one direction: then no sort is needed.
bool ascending_apart(const std::vector<Range>& ranges) {
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) return false;
  }
  return true;
}

bool descending_apart(const std::vector<Range>& ranges) {
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].end > ranges[i - 1].begin) return false;
  }
  return true;
}

// By their first bytes. Many in passes over the bits in which these differ, which takes a third of
// the time of std::sort for a thousand; a pass alone costs as much as a few tensors' clipping.
void sort(std::vector<Range>& ranges) {
  constexpr size_t kFew = 64;
  if (ranges.size() <= kFew) {
    const auto before = [](const Range& a, const Range& b) { return a.begin < b.begin; };
    std::sort(ranges.begin(), ranges.end(), before);
    return;
  }
  constexpr int kBits = 9;
  uintptr_t differ = 0;
  for (const Range& range : ranges) differ |= range.begin ^ ranges[0].begin;
  std::vector<Range> sorted(ranges.size());
  for (int shift = 0; differ >> shift != 0; shift += kBits) {
    shift += __builtin_ctzll(differ >> shift);
    const auto digit = [&](const Range& r) { return r.begin >> shift & ((1u << kBits) - 1); };
    std::array<uint32_t, 1u << kBits> place{};
    for (const Range& range : ranges) ++place[digit(range)];
    uint32_t before = 0;
    for (uint32_t& count : place) before += std::exchange(count, before);
    for (const Range& range : ranges) sorted[place[digit(range)]++] = range;
    ranges.swap(sorted);
    if (shift + kBits >= 64) break;
  }
}

}  // namespace

bool any_overlap(std::vector<Range>& ranges) {
  size_t kept = 0;
  for (const Range& range : ranges) {
    if (range.begin != range.end) ranges[kept++] = range;
  }
  ranges.resize(kept);
  if (ascending_apart(ranges) || descending_apart(ranges)) return false;
  sort(ranges);
  return !ascending_apart(ranges);
}

}  // namespace fastclip
