// The boundary weight of an image, row after row. Compiled per instruction-set level, with internal
// linkage throughout: see the rule in isa.h.
//
// Column sums of the mask slide down, and a window's row sum is gathered from runs of 1, 4, 16, ...
// columns, so its cost is log4(window).
#pragma once

#include "structure_loss_kernels.h"
#include "structure_loss_row.h"

namespace fastclip::cpu {
namespace {

// The weight of every pixel of a band, row after row.
template <class Row>
class WeightRows {
 public:
  typedef typename Row::Real Real;
  typedef typename Row::Vector Vector;

  WeightRows(const LossPass& pass, char* memory) : pass_(pass), width_(pass.width) {
    find_terms();
    columns_ = take(memory, length_[0]);
    for (int level = 1; level < levels_; ++level) runs_[level] = take(memory, length_[level]);
    runs_[0] = columns_;
    for (int i = 0; i < terms_; ++i) term_[i].from = runs_[term_[i].level] + term_[i].start;
    Real** rows[] = {&own_mask_, &valid, &weight, &entering_, &leaving_, &other_valid_, &outside_};
    for (Real** row : rows) {
      *row = take(memory, width_);
      for (int64_t x = 0; x < padded(width_); ++x) (*row)[x] = row == &valid && x < width_;
    }
  }

  // Of this row, whole registers long:
  const Real* mask;  // zero where it is not valid
  Real* valid;       // 1 or 0
  Real* weight;      // 1 + boundary_weight |box / window_area - mask|, and 0 where not valid

  // Makes ready for rows y, y + 1, ... of an image.
  void start(int64_t image, int64_t y) {
    image_ = image;
    first_ = y;
    for (int64_t x = 0; x < length_[0]; ++x) columns_[x] = 0;
    for (int64_t row = y - pass_.radius_y; row < y + pass_.radius_y; ++row) slide(row, -1);
  }

  const Real* bce_weight() const { return pass_.weighted_bce ? weight : valid; }

  // Row y; returns the sums of the BCE's weight and of the weighted mask, a lane each.
  struct Sums {
    Vector bce_weight, mask;
  };
  Sums next(int64_t y) {
    // A row leaves only if a row above came in.
    slide(y + pass_.radius_y, y == first_ ? -1 : y - 1 - pass_.radius_y);
    mask = mask_row(y, own_mask_, valid);
    if (mask != own_mask_ && width_ % Row::kStep != 0) {
      convert<Row>(mask, own_mask_, width_);
      mask = own_mask_;
    }
    for (int level = 1, run = 1; level < levels_; ++level, run *= 4) add_runs(level, run);
    return pass_.valid != nullptr ? weigh<true>() : weigh<false>();
  }

 private:
  static Real* take(char*& memory, int64_t n) {
    Real* row = (Real*)memory;
    memory += padded(n) * sizeof(Real);
    return row;
  }

  // Row y of the mask, zero where it is not valid: in the tensor itself, or written to `buffer`.
  const Real* mask_row(int64_t y, Real* buffer, Real* valid_row) {
    const int64_t at = (image_ * pass_.height + y) * width_;
    if (pass_.valid == nullptr && pass_.mask_dtype == Row::kDType) {
      return (const Real*)pass_.mask + at;
    }
    convert_row<Row>(pass_.mask, pass_.mask_dtype, at, width_, buffer);
    if (pass_.valid == nullptr) return buffer;
    convert_row<Row>(pass_.valid, pass_.valid_dtype, at, width_, valid_row);
    for (int64_t x = 0; x < width_; ++x) {
      buffer[x] = valid_row[x] != 0 ? buffer[x] : (Real)0;
      valid_row[x] = valid_row[x] != 0 ? (Real)1 : (Real)0;
    }
    return buffer;
  }

  static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

  bool inside(int64_t y) const { return y >= 0 && y < pass_.height; }

  void slide(int64_t enters, int64_t leaves) {
    if (!inside(enters) && !inside(leaves)) return;
    const Real* in = inside(enters) ? mask_row(enters, entering_, other_valid_) : outside_;
    const Real* out = inside(leaves) ? mask_row(leaves, leaving_, other_valid_) : outside_;
    Real* columns = columns_ + margin_;
    for (int64_t x = 0; x < width_; x += Row::kStep) {
      __builtin_prefetch(in + width_ + x);
      const int64_t left = width_ - x;
      store(columns + x,
            load_raw<Vector>(columns + x) + (Row::read(in + x, left) - Row::read(out + x, left)));
    }
  }

  // runs[level][i] = sum of columns i .. i + 4^level, from runs of a fourth of that. Where those
  // are shorter than a register they are put together in registers: unaligned reads of what was
  // written just before would wait for it.
  void add_runs(int level, int run) {
    const Real* from = runs_[level - 1];
    Real* to = runs_[level];
    const int64_t length = length_[level];
    if (Row::kShifts && run == 1) return pair_runs<1>(from, to, length);
    if (Row::kShifts && run == 4) return pair_runs<4>(from, to, length);
    for (int64_t i = 0; i < length; i += Row::kStep) {
      const Vector a = load_raw<Vector>(from + i), b = load_raw<Vector>(from + i + run);
      const Vector c = load_raw<Vector>(from + i + 2 * run);
      const Vector d = load_raw<Vector>(from + i + 3 * run);
      store(to + i, (a + b) + (c + d));
    }
  }

  // Sums of two neighbours `run` apart, then of two of those.
  template <int run>
  static void pair_runs(const Real* from, Real* to, int64_t length) {
    Vector b = load_raw<Vector>(from + Row::kStep);
    Vector pairs = load_raw<Vector>(from);
    pairs += Row::template shifted<run>(pairs, b);
    for (int64_t i = 0; i < length; i += Row::kStep) {
      const Vector c = load_raw<Vector>(from + i + 2 * Row::kStep);
      const Vector next = b + Row::template shifted<run>(b, c);
      store(to + i, pairs + Row::template shifted<2 * run>(pairs, next));
      pairs = next;
      b = c;
    }
  }

  template <bool kMasked>
  Sums weigh() {
    const Real share = (Real)(pass_.boundary_weight / pass_.window_area);
    const Real whole = (Real)pass_.boundary_weight;
    const Term* term = term_;
    const int terms = terms_;
    const Real *mask = this->mask, *valid = this->valid, *v = bce_weight();
    const int64_t width = width_;
    Real* weight = this->weight;
    Sums sums{};
    for (int64_t x = 0; x < width; x += Row::kStep) {
      Vector box{};
      for (int i = 0; i < terms; ++i) box += term[i].sign * load_raw<Vector>(term[i].from + x);
      const Vector m = load_raw<Vector>(mask + x);
      Vector w = 1 + abs(share * box - whole * m);
      if (kMasked || x + Row::kStep > width) w = load_raw<Vector>(valid + x) != 0 ? w : Vector{};
      store(weight + x, w);
      sums.bce_weight += load_raw<Vector>(v + x);
      sums.mask += w * m;
    }
    return sums;
  }

  // The window is put together from runs by its digits in base 4 (-1, 0, 1 or 2): 31 is two runs of
  // 16 less one of 1.
  void find_terms() {
    int digit[32];
    int64_t rest = 2 * pass_.radius_x + 1;
    for (levels_ = 0; rest != 0; ++levels_) {
      digit[levels_] = rest % 4 == 3 ? -1 : (int)(rest % 4);
      rest = (rest - digit[levels_]) / 4;
      length_[levels_] = 0;
    }
    margin_ = padded(pass_.radius_x) - kLanes;
    int64_t at = margin_ - pass_.radius_x, run = 1;
    for (int level = 1; level < levels_; ++level) run *= 4;
    for (int level = levels_ - 1; level >= 0; --level, run /= 4) {
      const Real sign = digit[level] < 0 ? (Real)-1 : (Real)1;
      for (int k = digit[level] < 0 ? 1 : digit[level]; k > 0; --k, at += (int64_t)sign * run) {
        term_[terms_] = {level, sign < 0 ? at - run : at, sign, nullptr};
        length_[level] = larger(length_[level], term_[terms_++].start + padded(width_));
      }
      if (level + 1 == levels_) continue;
      const int64_t beyond = larger(3 * run, 2 * kLanes);  // what add_runs reads
      length_[level] = larger(length_[level], length_[level + 1] + beyond);
    }
  }

  struct Term {
    int level;
    int64_t start;
    Real sign;
    const Real* from;
  };

  const LossPass& pass_;
  const int64_t width_;
  int64_t image_ = 0, first_ = 0;
  int levels_ = 0, terms_ = 0;
  int64_t margin_;      // columns left of the image; its first is aligned
  int64_t length_[32];  // of each level's runs
  Term term_[64];
  Real* columns_;  // sums of the mask over the window's rows, and zeros around
  Real* runs_[32];
  Real *own_mask_, *entering_, *leaving_, *other_valid_, *outside_;
};

}  // namespace
}  // namespace fastclip::cpu
