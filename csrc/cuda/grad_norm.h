// Norms of tensor lists and what is done to them in place, on a CUDA device. No torch and no CUDA
// header here, so that the rest of the core compiles without a toolkit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensors/chunk.h"

namespace fastclip::cuda {

// The work buffer, in doubles: the running sum, the norm, the factor, one to spare, then partials.
constexpr int64_t kWorkHeader = 4;
constexpr int64_t kSpare = 3;  // where some graphs have their ticket
constexpr int64_t kMaxBlocks = 2048;
constexpr double kEps = 1e-6;  // torch's

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
};

// What a tensor's elements are multiplied by.
enum class Factor {
  kOfNorm,   // min(1, max_norm / (norm + 1e-6)), the norm being the number
  kNumber,   // the number itself
  kOfTensor  // of the array of doubles at `data`, one for each tensor
};

struct Multiplier {
  Factor factor;
  const void* data;  // on the device; where null, `value` is the number
  DType dtype;
  double value;
  double max_norm;
  bool after_norm;  // queued right behind the norm: its launch may overlap that one's end
};

// Whole tensors, one `Chunk` each and empty ones too, in the order of the list.
using Tensors = std::vector<Chunk>;

// Whether one launch has the norm of the whole list: of orders 1, 2, infinity and -infinity. Other
// orders have the norm of each tensor.
bool has_total(double p);

// How many doubles of partial sums a call needs behind the header of its work buffer.
int64_t partials(const Tensors& tensors);

// One launch for each 2040 tensors, for each 250 where the driver is older than CUDA 12.1. Same
// tensors, same device: same bits. For an order without a total, `units` (one number a tensor, or
// null) is what its elements are divided by before they are raised to p; those that are not finite
// and over zero stand for 1.
void grad_norm(const Tensors& tensors, double p, double max_norm, const NormResult& result,
               const double* units, Queue queue);

// Multiplies every element; at a factor of 1 the launch reads that factor and is over.
void scale_grads(const Tensors& tensors, const Multiplier& multiplier, Queue queue);

// Clamps every element to [-limit, limit]: reads all, writes 16 bytes only where one of them is
// outside. NaN stays. The limit is not negative, not NaN, and in the range of every dtype.
void clamp_grads(const Tensors& tensors, double limit, Queue queue);

// Why this device cannot run these kernels, or an empty string: asks the driver whether it has code
// for the device, or can make it from the PTX.
std::string why_not(int device);

}  // namespace fastclip::cuda
