// Ranges of memory, and whether they are disjoint: two threads may write only those that are.
#pragma once

#include <cstdint>
#include <vector>

namespace fastclip {

struct Range {
  uintptr_t begin, end;
};

// Whether two of these share a byte. May reorder them; an empty one shares nothing.
bool any_overlap(std::vector<Range>& ranges);

}  // namespace fastclip
