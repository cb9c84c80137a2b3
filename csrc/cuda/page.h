// The table of a list's tensors as kernels get it, in their parameters, and the chunks in which the
// tensors are walked.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/grad_norm.h"

namespace fastclip::cuda {

constexpr int kChunkShift = 15;  // 32 KB: two rounds of a block's loads
constexpr int64_t kChunkBytes = int64_t{1} << kChunkShift;

// How many elements a whole chunk has, as a power of two: the host divides by it for each tensor.
constexpr __host__ __device__ int chunk_shift(DType dtype) {
  return kChunkShift - (dtype == DType::kF64 ? 3 : dtype == DType::kF32 ? 2 : 1);
}

static_assert(kFloatDTypes == 4);  // in the low 2 bits of `last`

struct Entry {
  void* data;
  uint32_t end;   // chunks up to and with this tensor
  uint32_t last;  // elements in its last chunk, and in the low 2 bits its dtype
};

template <int capacity>
struct PageOf {
  static constexpr size_t kCapacity = capacity;
  Entry entry[capacity];
  uint32_t tensors;
  uint32_t chunks;
};

// A kernel may have 32,764 bytes of parameters from the driver of CUDA 12.1 on, 4 KB before. Short
// lists take the small page anyway: there is less to copy.
constexpr size_t kOtherBytes = 64;  // what a page leaves to a kernel's other parameters
using SmallPage = PageOf<250>;
using LargePage = PageOf<2040>;
static_assert(sizeof(SmallPage) + kOtherBytes <= 4096);
static_assert(sizeof(LargePage) + kOtherBytes <= 32764);

// Calls `use` with an empty page of the size that this list takes.
template <class Use>
void with_page(const Tensors& tensors, Use use) {
  int driver = 0;
  if (tensors.size() <= SmallPage::kCapacity || cudaDriverGetVersion(&driver) != cudaSuccess ||
      driver < 12010) {
    SmallPage page;
    use(page);
  } else {
    LargePage page;
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
        static_cast<uint32_t>(last << 2) | static_cast<uint32_t>(tensor.dtype)};
  }
  page.tensors = static_cast<uint32_t>(end - first);
  page.chunks = static_cast<uint32_t>(chunks);
  return end;
}

// A chunk, and where it lies.
struct Piece {
  void* data;
  int numel;
  DType dtype;
};

template <class Page>
__device__ Piece find(const Page& page, uint32_t chunk) {
  uint32_t low = 0, high = page.tensors - 1;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (chunk < page.entry[middle].end) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const Entry entry = page.entry[low];
  const uint32_t begin = low == 0 ? 0 : page.entry[low - 1].end;
  const DType dtype = static_cast<DType>(entry.last & 3);
  char* data = static_cast<char*>(entry.data) + (chunk - begin) * kChunkBytes;
  const bool whole = chunk + 1 < entry.end;
  const int numel = whole ? 1 << chunk_shift(dtype) : entry.last >> 2;
  return {data, numel, dtype};
}

}  // namespace fastclip::cuda
