// What structure_loss_kernels.cpp defines at each instruction-set level. No std templates: isa.h.
#pragma once

#include <stdint.h>

#include "../chunk.h"
#include "isa.h"

namespace fastclip::cpu {

struct LossHead {
  const void* logits;  // [images, height, width]
  void* grad;          // the same; written by the backward pass
};

// Sums over the pixels of one image: the weight of the BCE term, that times the BCE, and with the
// boundary weight w, s = sigmoid(logit) and m = mask, of s m w and of (s + m) w.
struct LossSums {
  double bce_weight, bce, intersection, total;
};

// d loss / d logit = bce (s - m) v + s (1 - s) (total - intersection m) w, where v is the weight of
// the BCE term: w, or 1 for a plain mean.
struct LossGradient {
  double bce, total, intersection;
};

// One pass over all images. A band is a run of rows of one image: the unit of a thread's work.
struct LossPass {
  int64_t images, height, width;
  int64_t bands, band_rows;    // bands per image
  int64_t radius_y, radius_x;  // of the window; at most height - 1, width - 1
  double boundary_weight;
  double window_area;
  bool weighted_bce;
  const void* mask;   // [images, height, width]
  const void* valid;  // the same, or null: all are valid
  DType mask_dtype, valid_dtype, logits_dtype;
  const LossHead* heads;
  int64_t head_count;
  LossSums* sums;                 // forward: [images * bands][heads]; else null
  const LossGradient* gradients;  // backward: [images][heads]; else null
  char* scratch;                  // [threads][scratch_bytes], 128-byte aligned
  int64_t scratch_bytes;
  int threads;
};

// Bytes of row buffers for one thread, enough at every level and dtype.
int64_t loss_scratch_bytes(const LossPass& pass);

FASTCLIP_DECLARE(void structure_loss_pass(const LossPass& pass))

}  // namespace fastclip::cpu
