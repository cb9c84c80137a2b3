#include "cpu/structure_loss/structure_loss.h"

#include <algorithm>

#include "cpu/structure_loss/sums.h"
#include "threads/shares.h"

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

void loss_units(const LossPass& pass, LossStep step, char* scratch, LossUnits units) {
  FASTCLIP_DISPATCH(structure_loss_units(pass, step, scratch, units))
}

// Row buffers for each thread, on cache lines of their own.
class Scratch {
 public:
  Scratch(int threads, int64_t bytes) : bytes_(bytes), lines_(threads * bytes / sizeof(Line)) {}

  char* of(int thread) { return lines_.data()->bytes + thread * bytes_; }

 private:
  struct alignas(128) Line {
    char bytes[128];
  };

  const int64_t bytes_;
  std::vector<Line> lines_;
};

void on_units(const LossPass& pass, LossStep step, int threads, Scratch& scratch) {
  Shares shares(step == LossStep::kImages ? pass.images : pass.images * pass.bands, threads);
  struct Next {
    Shares* shares;
    int thread;
  };
  run(threads, [&](int thread) {
    Next own{&shares, thread};
    const auto next = [](void* context) {
      const Next& own = *static_cast<Next*>(context);
      return own.shares->next(own.thread);
    };
    loss_units(pass, step, scratch.of(thread), {next, &own});
  });
}

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

void StructureLoss::run(const LossPass& pass) const {
  const bool small = images * height * width * pass.head_count < kSerialPixels;
  const int threads = small ? 1 : threads_for(images * pass.bands);
  Scratch scratch(threads, loss_scratch_bytes(pass));
  if (pass.work != LossWork::kBoth) {
    const bool sums = pass.work == LossWork::kSums;
    return on_units(pass, sums ? LossStep::kSums : LossStep::kGradients, threads, scratch);
  }
  // With images enough for every thread each keeps to its image, whose maps are still in cache for
  // the second pass; else all threads share every image.
  if (images >= 4 * threads || images % threads == 0) {
    return on_units(pass, LossStep::kImages, threads, scratch);
  }
  on_units(pass, LossStep::kSums, threads, scratch);
  for (int64_t image = 0; image < images; ++image) find_gradients(pass, image);
  on_units(pass, LossStep::kGradients, threads, scratch);
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
