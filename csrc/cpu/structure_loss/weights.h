// The boundary weight of an image, some rows at a time. Compiled per instruction-set level, with
// internal linkage throughout: see the rule in isa.h.
//
// Column sums of the mask slide down, and a window's row sum is put together from runs of columns.
// With AVX-512 the window of 31, which every published use of the loss has, is summed in registers
// instead.
#pragma once

#include "cpu/structure_loss/kernels.h"
#include "cpu/structure_loss/row.h"
#include "cpu/structure_loss/runs.h"
#include "cpu/structure_loss/window.h"

namespace fastclip::cpu {
namespace {

// The weight of every pixel of a band, some rows at a time.
template <class Row>
class WeightRows {
 public:
  typedef typename Row::Real Real;
  typedef typename Row::Vector Vector;

  __attribute__((noinline)) WeightRows(const LossPass& pass, char* memory)
      : pass_(pass), width_(pass.width), runs_(pass.radius_x, pass.width, memory) {
    Real** rows[] = {&entering_, &leaving_, &other_valid_, &outside_};
    for (Real** row : rows) {
      *row = take<Real>(memory, width_);
      for (int64_t x = 0; x < padded(width_); ++x) (*row)[x] = 0;
    }
    const int64_t strip = pass.strip_rows * width_;
    Real** strips[] = {&own_mask_, &valid, &weight};
    for (Real** pixels : strips) *pixels = take<Real>(memory, strip);
    for (int64_t i = 0; i < strip; ++i) valid[i] = 1;
  }

  // Of these rows, one behind the other:
  const Real* mask;  // zero where it is not valid
  Real* valid;       // 1 or 0
  Real* weight;      // 1 + boundary_weight |box / window_area - mask|, and 0 where not valid

  // Makes ready for rows y, y + 1, ... of an image.
  __attribute__((noinline)) void start(int64_t image, int64_t y) {
    image_ = image;
    first_ = y;
    runs_.clear_columns();
    if (!is_direct()) {
      for (int64_t row = y - pass_.radius_y; row < y + pass_.radius_y; ++row) {
        if (inside(row)) move(slide(row, -1));
      }
      return;
    }
    const int64_t top = larger(0, y - pass_.radius_y);
    const int64_t below = y + pass_.radius_y < pass_.height ? y + pass_.radius_y : pass_.height;
    const Real* from = mask_row(top, nullptr, nullptr);
    for (int64_t x = 0; x < width_; x += Row::kStep) {
      Vector sum{};
      for (int64_t row = 0; row < below - top; ++row) {
        sum += Row::read(from + row * width_ + x, width_ - x);
      }
      store(runs_.columns() + x, sum);
    }
  }

  const Real* bce_weight() const { return pass_.weighted_bce ? weight : valid; }

  // Sums of the BCE's weight, and of the weighted mask, or of the weight itself where the IoU is
  // formed per pixel.
  struct WideSums {
    typename Row::Sum bce_weight, second;
  };

  // Makes rows y .. y + rows, and returns their sums.
  __attribute__((noinline)) WideSums next(int64_t y, int64_t rows) {
    Sums sums{};
    mask = is_direct() ? mask_row(y, nullptr, nullptr) : own_mask_;
    for (int64_t row = 0; row < rows; ++row) {
      const Sums more = next_row(y + row, row * width_);
      sums.bce_weight += more.bce_weight;
      sums.mask += more.mask;
    }
    // A sum over a long row has lost digits by its end.
    if (pass_.pixel_iou || width_ > kPiece) return sums_of(rows * width_);
    return {Row::widen(sums.bce_weight), Row::widen(sums.mask)};
  }

 private:
  struct Sums {
    Vector bce_weight, mask;  // a lane each
  };

  // The sums of so many finished pixels, piece by piece.
  WideSums sums_of(int64_t pixels) const {
    const Real* v = bce_weight();
    WideSums sums{};
    for (int64_t first = 0; first < pixels; first += kPiece) {
      const int64_t end = pixels - first < kPiece ? pixels : first + kPiece;
      Sums piece{};
      for (int64_t at = first; at < end; at += Row::kStep) {
        const Vector w = Row::read(weight + at, end - at);
        piece.bce_weight += Row::read(v + at, end - at);
        piece.mask += pass_.pixel_iou ? w : w * Row::read(mask + at, end - at);
      }
      sums.bce_weight += Row::widen(piece.bce_weight);
      sums.second += Row::widen(piece.mask);
    }
    return sums;
  }

  // Row y, which lies `at` pixels behind the first.
  Sums next_row(int64_t y, int64_t at) {
    // A row leaves only if a row above came in.
    const int64_t leaves = y == first_ ? -1 : y - 1 - pass_.radius_y;
    const Slide slide = this->slide(y + pass_.radius_y, leaves);
    if (!is_direct()) mask_row(y, own_mask_ + at, valid + at);
    const bool masked = pass_.valid != nullptr;
    if (pass_.weighted_bce)
      return masked ? weigh<true, true>(slide, at) : weigh<false, true>(slide, at);
    return masked ? weigh<true, false>(slide, at) : weigh<false, false>(slide, at);
  }

  // Whether the mask's rows are read where they lie.
  bool is_direct() const { return pass_.valid == nullptr && pass_.mask_dtype == Row::kDType; }

  // Row y of the mask, zero where it is not valid: in the tensor itself, or written to `buffer`.
  const Real* mask_row(int64_t y, Real* buffer, Real* valid_row) {
    const int64_t at = (image_ * pass_.height + y) * width_;
    if (is_direct()) return (const Real*)pass_.mask + at;
    convert_row<Row>(pass_.mask, pass_.mask_dtype, at, width_, buffer);
    if (pass_.valid == nullptr) return buffer;
    convert_row<Row>(pass_.valid, pass_.valid_dtype, at, width_, valid_row);
    for (int64_t x = 0; x < width_; ++x) {
      buffer[x] = valid_row[x] != 0 ? buffer[x] : (Real)0;
      valid_row[x] = valid_row[x] != 0 ? (Real)1 : (Real)0;
    }
    return buffer;
  }

  bool inside(int64_t y) const { return y >= 0 && y < pass_.height; }

  // The column sums, as a row enters the window and another leaves it.
  struct Slide {
    const Real *in, *out;
    Real* columns;
    int64_t width;
    __attribute__((always_inline)) Vector at(int64_t x, int64_t left) const {
      __builtin_prefetch(in + width + x);
      const Vector change = Row::read(in + x, left) - Row::read(out + x, left);
      const Vector sums = load_raw<Vector>(columns + x) + change;
      store(columns + x, sums);
      return sums;
    }
  };

  void move(const Slide& slide) {
    const Slide rows = slide;  // in registers
    each_register<Row>(0, rows.width, [&](int64_t x, int64_t left) __attribute__((always_inline)) {
      rows.at(x, left);
    });
  }

  Slide slide(int64_t enters, int64_t leaves) {
    return {inside(enters) ? mask_row(enters, entering_, other_valid_) : outside_,
            inside(leaves) ? mask_row(leaves, leaving_, other_valid_) : outside_, runs_.columns(),
            width_};
  }

  // Turns the mask's sums over a row's windows into weights, a register of pixels at a time.
  template <bool kMasked, bool kWeighted>
  class Weigh {
   public:
    Weigh(const WeightRows& rows, int64_t at)
        : share_((Real)(rows.pass_.boundary_weight / rows.pass_.window_area)),
          area_((Real)rows.pass_.window_area),
          mask_(rows.mask + at),
          valid_(rows.valid + at),
          weight_(rows.weight + at) {}

    // Of the last register only what is `left` counts; beyond it the next row will be written.
    __attribute__((always_inline)) void at(int64_t x, int64_t left, Vector box) {
      const Vector m = Row::read(mask_ + x, left);
      Vector w = 1 + share_ * abs(box - area_ * m);
      if (kMasked) w = Row::read(valid_ + x, left) != 0 ? w : Vector{};
      store(weight_ + x, w);
      if (left < Row::kStep) w = Row::read(weight_ + x, left);
      bce_weight_ += kWeighted ? w : Row::read(valid_ + x, left);  // not read back: that waits
      weighted_mask_ += w * m;
    }

    Sums sums() const { return {bce_weight_, weighted_mask_}; }

   private:
    const Real share_, area_;
    const Real *const mask_, *const valid_;
    Real* const weight_;
    Vector bce_weight_{}, weighted_mask_{};
  };

  template <class Weigh>
  __attribute__((always_inline)) void weigh_31(Weigh& weigh, const Slide& slide) {
    constexpr int64_t kStep = Row::kStep, kBehind = Window31<Row>::kBehind * kStep;
    const Slide rows = slide;  // in registers
    Window31<Row> window;
    const auto push = [&](int64_t x) __attribute__((always_inline)) {
      const int64_t left = rows.width - x;
      window.push(left >= kStep ? rows.at(x, kStep) : left > 0 ? rows.at(x, left) : Vector{});
    };
    int64_t x = 0;
    for (; x < kBehind; x += kStep) push(x);
    for (; x + kStep <= rows.width; x += kStep) {
      window.push(rows.at(x, kStep));
      weigh.at(x - kBehind, kStep, window.sum(rows.columns + x - kBehind));
    }
    for (x -= kBehind; x < rows.width; x += kStep) {
      push(x + kBehind);
      const int64_t left = rows.width - x;
      const Vector box = window.sum(rows.columns + x);
      left >= kStep ? weigh.at(x, kStep, box) : weigh.at(x, left, box);
    }
  }

  template <bool kMasked, bool kWeighted>
  Sums weigh(const Slide& slide, int64_t at) {
    Weigh<kMasked, kWeighted> weigh(*this, at);
    if (Row::kShifts && pass_.radius_x == Window31<Row>::kRadius) {
      weigh_31(weigh, slide);
    } else {
      move(slide);
      runs_.each_sum([&](int64_t x, int64_t left, Vector box)
                         __attribute__((always_inline)) { weigh.at(x, left, box); });
    }
    return weigh.sums();
  }

  const LossPass& pass_;
  const int64_t width_;
  WindowRuns<Row> runs_;
  int64_t image_ = 0, first_ = 0;
  Real *own_mask_, *entering_, *leaving_, *other_valid_, *outside_;
};

}  // namespace
}  // namespace fastclip::cpu
