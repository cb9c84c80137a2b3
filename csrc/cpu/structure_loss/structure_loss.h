// The structure loss on CPU threads: sums of every image in one pass, gradients in another.
#pragma once

#include <vector>

#include "cpu/structure_loss/kernels.h"

namespace fastclip::cpu {

struct StructureLoss {
  int64_t images;  // batch * channels
  int64_t height, width;
  int64_t window;  // odd
  double boundary_weight, smooth;
  bool weighted_bce, pixel_iou;
  const double* pos_weight;  // [channels], or null
  int64_t channels;          // image i is of channel i % channels
  const void* mask;
  const void* valid;  // or null
  DType mask_dtype, valid_dtype, logits_dtype;
  std::vector<LossHead> heads;

  // Fills sums[heads][images] and loss[heads][images].
  void forward(LossSums* sums, double* loss) const;

  // Both in one: upstream[heads] is the gradient of every image's loss. Heads without room for a
  // gradient get none.
  void forward_backward(const double* upstream, LossSums* sums, double* loss) const;

  // Writes each head's gradient, given the upstream gradient of loss[heads][images].
  void backward(const LossSums* sums, const double* grad_loss) const;

 private:
  bool is_empty() const { return images == 0 || height == 0 || width == 0; }
  LossPass pass() const;
  void run(const LossPass& pass) const;
  void sum(LossPass& pass, LossSums* sums, double* loss) const;
};

}  // namespace fastclip::cpu
