// How a block walks its share of a page: chunks one after another, tensor by tensor.
//
// A share is a run of chunks, found by one search; from there on the walk steps from tensor to
// tensor. What it has of a long tensor is read by all threads of the block together; tensors of up
// to a chunk, one by one, by a warp each, so that eight of them are on their way at a time.
#pragma once

#include <cstdint>

#include "cuda/block.h"
#include "cuda/page.h"

namespace fastclip::cuda {

// A run of elements of one tensor, all that a block has of it.
struct Piece {
  void* data;
  int64_t numel;
  DType dtype;
};

// The threads that read a piece together, and which of them this one is.
struct Team {
  uint32_t thread;
  uint32_t threads;  // 32: a warp; kThreads: the block
  __device__ bool is_block() const { return threads != 32; }
};

// Where a block's share begins; that of block `gridDim.x` is the end of all.
__device__ inline uint32_t share(uint32_t chunks, uint32_t block) {
  return static_cast<uint32_t>(static_cast<uint64_t>(chunks) * block / gridDim.x);
}

// The block whose share has this chunk.
__device__ inline uint32_t block_of(uint32_t chunks, uint32_t chunk) {
  return static_cast<uint32_t>(((static_cast<uint64_t>(chunk) + 1) * gridDim.x - 1) / chunks);
}

// The tensor that has this chunk.
template <class Page>
__device__ uint32_t tensor_of(const Page& page, uint32_t chunk) {
  uint32_t low = 0, high = page.tensors - 1;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (chunk < page.entry[middle].end) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Chunks `from` to `to` of a tensor that begins with chunk `begin`.
__device__ inline Piece piece_of(const Entry& entry, uint32_t begin, uint32_t from, uint32_t to) {
  const DType dtype = static_cast<DType>(entry.last & ((1 << kDTypeBits) - 1));
  const int shift = chunk_shift(dtype);
  char* data = static_cast<char*>(entry.data) + static_cast<int64_t>(from - begin) * kChunkBytes;
  const int64_t numel =
      to < entry.end ? static_cast<int64_t>(to - from) << shift
                     : (static_cast<int64_t>(to - from - 1) << shift) + (entry.last >> kDTypeBits);
  return {data, numel, dtype};
}

// Calls `use(tensor, piece, team)` for every piece of this block's share that this thread has a
// part in: from the last one on where it walks `backwards`. All threads of a block come to each
// piece of a long tensor, in the same order.
template <bool backwards, class Page, class Use>
__device__ void walk(const Page& page, Use use) {
  uint32_t from = share(page.chunks, blockIdx.x), to = share(page.chunks, blockIdx.x + 1);
  if (from == to) return;
  uint32_t tensor = tensor_of(page, backwards ? to - 1 : from);
  for (uint32_t turn = 0; from < to;) {
    const Entry entry = page.entry[tensor];
    const uint32_t begin = tensor == 0 ? 0 : page.entry[tensor - 1].end;
    if (begin != entry.end) {
      const uint32_t first = max(from, begin), last = min(to, entry.end);
      const Team warp{threadIdx.x % 32, 32}, block{threadIdx.x, kThreads};
      if (last - first > 1) {
        use(tensor, piece_of(entry, begin, first, last), block);
      } else if (turn++ % kWarps == threadIdx.x / 32) {
        use(tensor, piece_of(entry, begin, first, last), warp);
      }
      from = backwards ? from : last;
      to = backwards ? first : to;
    }
    tensor = backwards ? tensor - 1 : tensor + 1;
  }
}

}  // namespace fastclip::cuda
