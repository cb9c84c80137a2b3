// Norms of tensor lists and their scaling, on a CUDA device. No torch and no CUDA header here, so
// that the rest of the core compiles without a toolkit.
#pragma once

#include <cstdint>
#include <vector>

#include "tensors/chunk.h"

namespace fastclip::cuda {

// The work buffer, in doubles: the running sum, the norm, the factor, one to spare, then partials.
constexpr int64_t kWorkHeader = 4;
constexpr int64_t kMaxBlocks = 2048;

// Where launches go. `stream` is a cudaStream_t.
struct Queue {
  int device;
  void* stream;
};

// What the norm's launch writes, all of it on the device. Pointers but `work` may be null.
struct NormResult {
  double* work;  // [kWorkHeader + partials(...)]; work[1] is the norm, work[2] the factor
  void* total;   // the norm, rounded to total_dtype
  DType total_dtype;
  double* per_tensor;  // the norm of every tensor
  float* optimizer;    // [2]: 1 / factor and whether the norm is not finite, as fused steps ask
};

// A norm known before: a number on the device, or where `data` is null, `value`.
struct KnownNorm {
  const void* data;
  DType dtype;
  double value;
};

// Whole tensors, one `Chunk` each and empty ones too, in the order of the list.
using Tensors = std::vector<Chunk>;

// p is 1, 2 or infinity.
bool has_norm(double p);

// How many doubles of partial sums a call needs behind the header of its work buffer.
int64_t partials(const Tensors& tensors, bool per_tensor);

// One launch for each 2040 tensors, for each 250 where the driver is older than CUDA 12.1. Same
// tensors, same device: same bits.
void grad_norm(const Tensors& tensors, double p, double max_norm, const NormResult& result,
               Queue queue);

// x *= min(1, max_norm / (norm + 1e-6)); at a factor of 1 the launch reads the norm and is over.
void scale_grads(const Tensors& tensors, double max_norm, const KnownNorm& norm, Queue queue);

// Why this device cannot run these kernels, or an empty string.
const char* why_not(int device);

}  // namespace fastclip::cuda
