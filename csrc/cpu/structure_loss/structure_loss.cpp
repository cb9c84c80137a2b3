#include "cpu/structure_loss/structure_loss.h"

#include <algorithm>

#include "cpu/structure_loss/sums.h"
#include "cpu/vector/float_mode.h"
#include "openmp.h"

namespace fastclip::cpu {
namespace {

constexpr int64_t kSerialPixels = 16 * 1024;  // fewer than this many are not worth waking a thread
constexpr int64_t kBandsWanted = 256;         // enough units for any machine's threads
constexpr int64_t kBandRows = 512;            // or fewer, where the window allows it
// So long a strip is worth starting every head's loops for, and L1 holds its weights and one head.
constexpr int64_t kStripPixels = 1024;
// Maps of an image that no cache holds between two passes: streaming gains a tenth at 29 MB, and
// nothing at 7 (32 MB of L3).
constexpr int64_t kStreamBytes = 8 << 20;

void structure_loss_pass(const LossPass& pass){FASTCLIP_DISPATCH(structure_loss_pass(pass))}

// A fresh band pays for the rows above it that its window holds, so it is at least two windows
// high. Column sums slide in the logits' precision, and a long way would let soft masks drift.
int64_t bands_per_image(int64_t images, int64_t height, int64_t radius_y) {
  const int64_t wanted = std::max((kBandsWanted + images - 1) / images, height / kBandRows);
  const int64_t most = height / (4 * radius_y + 2);
  return std::max<int64_t>(1, std::min(wanted, most));
}

}  // namespace

int64_t loss_scratch_bytes(const LossPass& pass) {
  constexpr int64_t kVector = 64, kRows = 4, kStrips = 3;
  const int64_t real = pass.logits_dtype == DType::kF64 ? sizeof(double) : sizeof(float);
  const int64_t row = pass.width + 4 * kVector, window = 2 * pass.radius_x + 1;
  const int64_t strip = pass.strip_rows * pass.width + 4 * kVector;
  int64_t levels = 2;  // digits of the window in base 4, and the carry
  for (int64_t rest = window; rest >= 4; rest /= 4) ++levels;
  const int64_t reals = kStrips * strip + kRows * row + levels * (row + 4 * window);
  return (pass.head_count * 3 * 2 * kVector + reals * real + 127) / 128 * 128;
}

LossPass StructureLoss::pass() const {
  LossPass pass{};
  pass.images = images;
  pass.height = height;
  pass.width = width;
  pass.radius_y = std::min(window / 2, height - 1);
  pass.radius_x = std::min(window / 2, width - 1);
  pass.bands = bands_per_image(images, height, pass.radius_y);
  pass.band_rows = (height + pass.bands - 1) / pass.bands;
  pass.strip_rows = std::max<int64_t>(1, kStripPixels / std::max<int64_t>(1, width));
  pass.boundary_weight = boundary_weight;
  pass.smooth = smooth;
  pass.window_area = static_cast<double>(window) * static_cast<double>(window);
  pass.weighted_bce = weighted_bce;
  pass.pixel_iou = pixel_iou;
  pass.pos_weight = pos_weight;
  pass.channels = channels;
  const int64_t maps = 2 * static_cast<int64_t>(heads.size()) + 1;  // logits, gradients, mask
  pass.streams = maps * height * width * static_cast<int64_t>(sizeof(float)) > kStreamBytes;
  pass.mask = mask;
  pass.valid = valid;
  pass.mask_dtype = mask_dtype;
  pass.valid_dtype = valid_dtype;
  pass.logits_dtype = logits_dtype;
  pass.heads = heads.data();
  pass.head_count = static_cast<int64_t>(heads.size());
  return pass;
}

void StructureLoss::run(LossPass& pass) const {
  const bool small = images * height * width * pass.head_count < kSerialPixels;
  pass.threads =
      small ? 1 : static_cast<int>(std::min<int64_t>(max_threads(), images * pass.bands));
  pass.float_mode = float_mode();
  pass.scratch_bytes = loss_scratch_bytes(pass);
  struct alignas(128) Line {
    char bytes[128];
  };
  std::vector<Line> scratch(pass.threads * pass.scratch_bytes / sizeof(Line));
  pass.scratch = scratch.data()->bytes;
  structure_loss_pass(pass);
}

void StructureLoss::forward(LossSums* sums, double* loss) const {
  if (is_empty()) return;
  LossPass pass = this->pass();
  pass.work = LossWork::kSums;
  sum(pass, sums, loss);
}

void StructureLoss::forward_backward(const double* upstream, LossSums* sums, double* loss) const {
  if (is_empty()) return;
  LossPass pass = this->pass();
  std::vector<LossGradient> gradients(images * pass.head_count);
  pass.work = LossWork::kBoth;
  pass.upstream = upstream;
  pass.gradients = gradients.data();
  sum(pass, sums, loss);
}

void StructureLoss::sum(LossPass& pass, LossSums* sums, double* loss) const {
  std::vector<LossSums> bands(images * pass.bands * pass.head_count);
  pass.sums = bands.data();
  run(pass);
  for (int64_t head = 0; head < pass.head_count; ++head) {
    for (int64_t image = 0; image < images; ++image) {
      const int64_t i = head * images + image;
      sums[i] = image_sums(pass, image, head);
      loss[i] = loss_of(pass, sums[i]);
    }
  }
}

void StructureLoss::backward(const LossSums* sums, const double* grad_loss) const {
  if (is_empty()) return;
  LossPass pass = this->pass();
  std::vector<LossGradient> gradients(images * pass.head_count);
  for (int64_t image = 0; image < images; ++image) {
    for (int64_t head = 0; head < pass.head_count; ++head) {
      const int64_t i = head * images + image;
      gradients[image * pass.head_count + head] = gradient_of(pass, sums[i], grad_loss[i]);
    }
  }
  pass.work = LossWork::kGradients;
  pass.gradients = gradients.data();
  run(pass);
}

}  // namespace fastclip::cpu
