// What kernels.cpp defines at each instruction-set level. No std templates: isa.h.
#pragma once

#include <stdint.h>

#include "cpu/vector/isa.h"
#include "tensors/chunk.h"

namespace fastclip::cpu {

struct LossHead {
  const void* logits;  // [images, height, width]
  void* grad;          // the same, or null; written by all work but kSums
};

// Sums over the pixels of one image: the weight of the BCE term, that times the BCE, and with the
// boundary weight w, s = sigmoid(logit) and m = mask, of s m w and of (s + m) w. Where the IoU is
// formed per pixel those two are of w u, with u = 1 - (s m + smooth) / (s + m - s m + smooth), and
// of w.
struct LossSums {
  double bce_weight, bce, intersection, total;
};

// d loss / d logit = bce (s - m) v + s (1 - s) (total - intersection m) w, where v is the weight of
// the BCE term: w, or 1 for a plain mean. Where the IoU is formed per pixel its part is
// s (1 - s) total w du/ds. With a weight p of the positive the BCE's is
// bce ((1 - m) s - p m (1 - s)) v.
struct LossGradient {
  double bce, total, intersection;
};

enum class LossWork {
  kSums,       // fills sums
  kGradients,  // writes each head's gradient, from gradients
  kBoth,       // the one, then the other; in float32 the sigmoids wait in the gradient's place
};

// A part of that, and what its units are: bands, but of kImages images.
enum class LossStep {
  kSums,
  kGradients,
  kImages,  // of kBoth: sums, gradients for `upstream`, and each head's gradient written
};

// Where a thread's next unit comes from: negative when there is none any more.
struct LossUnits {
  int64_t (*next)(void* context);
  void* context;
};

// One pass over all images. A band is a run of rows of one image: the unit of a thread's work.
struct LossPass {
  LossWork work;
  int64_t images, height, width;
  int64_t bands, band_rows;    // bands per image
  int64_t strip_rows;          // that are weighed, and then read by every head, at a time
  int64_t radius_y, radius_x;  // of the window; at most height - 1, width - 1
  double boundary_weight, smooth;
  double window_area;
  bool weighted_bce;
  bool pixel_iou;
  const double* pos_weight;  // [channels], the weight of a positive in the BCE; or null: all are 1
  int64_t channels;          // image i is of channel i % channels
  bool streams;              // kBoth: no cache holds an image's maps until the second pass
  const void* mask;          // [images, height, width]
  const void* valid;         // the same, or null: all are valid
  DType mask_dtype, valid_dtype, logits_dtype;
  const LossHead* heads;
  int64_t head_count;
  LossSums* sums;           // [images * bands][heads]
  LossGradient* gradients;  // [images][heads]
  const double* upstream;   // [heads], the gradient of each image's loss
};

// Bytes of row buffers for one thread, enough at every level and dtype.
int64_t loss_scratch_bytes(const LossPass& pass);

// Does one thread's units. `scratch` is that thread's own, and aligned to 128 bytes.
FASTCLIP_DECLARE(void structure_loss_units(const LossPass& pass, LossStep step, char* scratch,
                                           LossUnits units))

}  // namespace fastclip::cpu
