// The table of a list's tensors as kernels get it, in their parameters.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/grad_norm.h"

namespace fastclip::cuda {

constexpr int kChunkShift = 12;  // 4 KB: two rounds of a warp's loads
constexpr int64_t kChunkBytes = int64_t{1} << kChunkShift;
constexpr int kDTypeBits = 3;  // of an entry's `last`

// How many elements a whole chunk has, as a power of two: the host divides by it for each tensor.
constexpr __host__ __device__ int chunk_shift(DType dtype) {
  return kChunkShift - (dtype == DType::kF64 ? 3 : dtype == DType::kF32 ? 2 : 1);
}

struct Entry {
  void* data;
  uint32_t end;   // chunks up to and with this tensor
  uint32_t last;  // elements in its last chunk, and in the low bits its dtype
};

template <class Row, int capacity>
struct PageOf {
  static constexpr size_t kCapacity = capacity;
  Row entry[capacity];
  uint32_t tensors;
  uint32_t chunks;
};

// A kernel may have 32,764 bytes of parameters from the driver of CUDA 12.1 on, 4 KB before. Short
// lists take the small page anyway: there is less to copy.
constexpr size_t kOtherBytes = 80;  // what a page leaves to a kernel's other parameters
using SmallPage = PageOf<Entry, 250>;
using LargePage = PageOf<Entry, 2040>;
static_assert(sizeof(SmallPage) + kOtherBytes <= 4096);
static_assert(sizeof(LargePage) + kOtherBytes <= 32764);

// Calls `use` with an empty page of the size that a list of so many tensors takes.
template <class Small = SmallPage, class Large = LargePage, class Use>
void with_page(size_t tensors, Use use) {
  int driver = 0;
  if (tensors <= Small::kCapacity || cudaDriverGetVersion(&driver) != cudaSuccess ||
      driver < 12010) {
    Small page;
    use(page);
  } else {
    Large page;
    use(page);
  }
}

// The page that starts at tensor `first`; returns where the next one starts.
template <class Page>
size_t fill(Page& page, const Tensors& tensors, size_t first) {
  const size_t end = std::min(tensors.size(), first + Page::kCapacity);
  int64_t chunks = 0;
  for (size_t t = first; t < end; ++t) {
    const Chunk& tensor = tensors[t];
    const int shift = chunk_shift(tensor.dtype);
    const int64_t count = (tensor.numel + (int64_t{1} << shift) - 1) >> shift;
    const int64_t last = tensor.numel - (std::max<int64_t>(0, count - 1) << shift);
    chunks += count;
    page.entry[t - first] = {
        tensor.data, static_cast<uint32_t>(chunks),
        static_cast<uint32_t>(last << kDTypeBits) | static_cast<uint32_t>(tensor.dtype)};
  }
  page.tensors = static_cast<uint32_t>(end - first);
  page.chunks = static_cast<uint32_t>(chunks);
  return end;
}

// Calls `use(page)` with every page of a list in turn.
template <class Small = SmallPage, class Large = LargePage, class List, class Use>
void for_pages(const List& list, Use use) {
  with_page<Small, Large>(list.size(), [&](auto& page) {
    for (size_t next = 0; next < list.size();) {
      next = fill(page, list, next);
      use(page);
    }
  });
}

}  // namespace fastclip::cuda
