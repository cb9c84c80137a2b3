// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
//
// A band walks its image row by row. Column sums of the mask slide down, a window's row sum is
// gathered from runs of 1, 4, 16, ... columns (so its cost is log4(window)), and every head reads
// the finished weight row while it is in L1.
#include "structure_loss_kernels.h"

#include <omp.h>

#include "structure_loss_row.h"

namespace fastclip::cpu::FASTCLIP_ISA {
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
    Real** rows[] = {&mask, &valid, &weight, &entering_, &leaving_, &other_valid_, &outside_};
    for (Real** row : rows) {
      *row = take(memory, width_);
      for (int64_t x = 0; x < padded(width_); ++x) (*row)[x] = row == &valid && x < width_;
    }
  }

  Real* mask;    // of this row: zero where it is not valid
  Real* valid;   // 1 or 0
  Real* weight;  // 1 + boundary_weight |box / window_area - mask|, and 0 where not valid

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
    const Real* row = mask_row(y, mask, valid);
    if (row != mask) convert<Row>(row, mask, width_);
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

  bool inside(int64_t y) const { return y >= 0 && y < pass_.height; }

  void slide(int64_t enters, int64_t leaves) {
    if (!inside(enters) && !inside(leaves)) return;
    const Real* in = inside(enters) ? mask_row(enters, entering_, other_valid_) : outside_;
    const Real* out = inside(leaves) ? mask_row(leaves, leaving_, other_valid_) : outside_;
    Real* columns = columns_ + pass_.radius_x;
#pragma omp simd
    for (int64_t x = 0; x < width_; ++x) columns[x] += in[x] - out[x];
  }

  // runs[level][i] = sum of columns i .. i + 4^level, from runs of a fourth of that.
  void add_runs(int level, int run) {
    const Real* from = runs_[level - 1];
    Real* to = runs_[level];
#pragma omp simd
    for (int64_t i = 0; i < length_[level]; ++i) {
      to[i] = (from[i] + from[i + run]) + (from[i + 2 * run] + from[i + 3 * run]);
    }
  }

  template <bool kMasked>
  Sums weigh() {
    const Real share = (Real)(pass_.boundary_weight / pass_.window_area);
    const Real whole = (Real)pass_.boundary_weight;
    Sums sums{};
    for (int64_t x = 0; x < width_; x += Row::kStep) {
      Vector box{};
      for (int i = 0; i < terms_; ++i) {
        box += term_[i].sign * load_raw<Vector>(runs_[term_[i].level] + term_[i].start + x);
      }
      const Vector m = load_raw<Vector>(mask + x);
      Vector w = 1 + abs(share * box - whole * m);
      if (kMasked || x + Row::kStep > width_) w = load_raw<Vector>(valid + x) != 0 ? w : Vector{};
      memcpy(weight + x, &w, sizeof(w));
      sums.bce_weight += pass_.weighted_bce ? w : load_raw<Vector>(valid + x);
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
    int64_t at = 0, run = 1;
    for (int level = 1; level < levels_; ++level) run *= 4;
    for (int level = levels_ - 1; level >= 0; --level, run /= 4) {
      const Real sign = digit[level] < 0 ? (Real)-1 : (Real)1;
      for (int k = digit[level] < 0 ? 1 : digit[level]; k > 0; --k, at += (int64_t)sign * run) {
        const int64_t start = sign < 0 ? at - run : at;
        term_[terms_++] = {level, start, sign};
        length_[level] =
            start + padded(width_) > length_[level] ? start + padded(width_) : length_[level];
      }
      if (level + 1 < levels_ && length_[level + 1] + 3 * run > length_[level]) {
        length_[level] = length_[level + 1] + 3 * run;
      }
    }
  }

  struct Term {
    int level;
    int64_t start;
    Real sign;
  };

  const LossPass& pass_;
  const int64_t width_;
  int64_t image_ = 0, first_ = 0;
  int levels_ = 0, terms_ = 0;
  int64_t length_[32];  // of each level's runs
  Term term_[64];
  Real* columns_;  // sums of the mask over the window's rows, and zeros around
  Real* runs_[32];
  Real *entering_, *leaving_, *other_valid_, *outside_;
};

template <class Row>
class Band {
 public:
  typedef typename Row::Real Real;
  typedef typename Row::Vector Vector;
  typedef typename Row::Sum Sum;

  Band(const LossPass& pass, char* memory)
      : pass_(pass),
        width_(pass.width),
        sums_((HeadSums*)memory),
        rows_(pass, memory + pass.head_count * sizeof(HeadSums)) {}

  template <class T>
  void run(int64_t unit) {
    image_ = unit / pass_.bands;
    const int64_t first = unit % pass_.bands * pass_.band_rows;
    const int64_t below = first + pass_.band_rows;
    const int64_t end = below < pass_.height ? below : pass_.height;
    for (int64_t h = 0; h < pass_.head_count; ++h) sums_[h] = HeadSums{};
    bce_weight_ = weighted_mask_ = Sum{};
    rows_.start(image_, first);
    for (int64_t y = first; y < end; ++y) {
      const auto common = rows_.next(y);
      bce_weight_ += Row::widen(common.bce_weight);
      weighted_mask_ += Row::widen(common.mask);
      pass_.valid != nullptr ? heads<true, T>(y) : heads<false, T>(y);
    }
    if (pass_.sums != nullptr) write_sums(pass_.sums + unit * pass_.head_count);
  }

 private:
  struct HeadSums {
    Sum bce, intersection, sigmoid;
  };

  // What both passes know of a pixel: s = sigmoid(x), 1 - s, and e = exp(-|x|).
  struct Sigmoid {
    Vector e, s, slope;
    explicit Sigmoid(Vector x) {
      e = exp_neg(abs(x));
      const Vector r = 1 / (1 + e), er = e * r;
      s = x >= 0 ? r : er;
      slope = er * r;  // s (1 - s)
    }
  };

  template <bool kMasked, class T>
  FASTCLIP_INLINE Vector logit(const Band& band, const T* row, int64_t x) {
    const Vector value = Row::read(row + x, band.width_ - x);
    if (!kMasked) return value;
    return load_raw<Vector>(band.rows_.valid + x) != 0 ? value : Vector{};  // nor does NaN count
  }

  template <bool kMasked, class T>
  void heads(int64_t y) {
    const int64_t at = (image_ * pass_.height + y) * width_;
    for (int64_t h = 0; h < pass_.head_count; ++h) {
      const T* row = (const T*)pass_.heads[h].logits + at;
      if (pass_.gradients == nullptr) {
        add_sums<kMasked>(row, sums_[h]);
      } else {
        const LossGradient& gradient = pass_.gradients[image_ * pass_.head_count + h];
        write_gradient<kMasked>(row, (T*)pass_.heads[h].grad + at, gradient);
      }
    }
  }

  template <bool kMasked, class T>
  void add_sums(const T* row, HeadSums& sums) {
    const Real* v = rows_.bce_weight();
    Vector bce_sum{}, intersection{}, sigmoids{};
    for (int64_t at = 0; at < width_; at += Row::kStep) {
      __builtin_prefetch(row + width_ + at);
      const Vector x = logit<kMasked>(*this, row, at);
      const Vector m = load_raw<Vector>(rows_.mask + at), w = load_raw<Vector>(rows_.weight + at);
      const Sigmoid sigmoid(x);
      const Vector bce = (at_least_0(x) - m * x) + log1p_unit(sigmoid.e);
      const Vector ws = w * sigmoid.s;
      bce_sum += load_raw<Vector>(v + at) * bce;
      intersection += ws * m;
      sigmoids += ws;
    }
    sums.bce += Row::widen(bce_sum);
    sums.intersection += Row::widen(intersection);
    sums.sigmoid += Row::widen(sigmoids);
  }

  template <bool kMasked, class T>
  void write_gradient(const T* row, T* grad, const LossGradient& g) {
    const Real* v = rows_.bce_weight();
    const Real g_bce = (Real)g.bce, g_total = (Real)g.total, g_inter = (Real)g.intersection;
    for (int64_t at = 0; at < width_; at += Row::kStep) {
      __builtin_prefetch(row + width_ + at);
      __builtin_prefetch(grad + width_ + at, 1);
      const Vector x = logit<kMasked>(*this, row, at);
      const Vector m = load_raw<Vector>(rows_.mask + at), w = load_raw<Vector>(rows_.weight + at);
      const Sigmoid sigmoid(x);
      const Vector from_bce = load_raw<Vector>(v + at) * (g_bce * (sigmoid.s - m));
      const Vector from_iou = w * sigmoid.slope * (g_total - g_inter * m);
      Row::write(grad + at, from_bce + from_iou, width_ - at);
    }
  }

  void write_sums(LossSums* out) const {
    for (int64_t h = 0; h < pass_.head_count; ++h) {
      out[h].bce_weight = Row::total(bce_weight_);
      out[h].bce = Row::total(sums_[h].bce);
      out[h].intersection = Row::total(sums_[h].intersection);
      out[h].total = Row::total(sums_[h].sigmoid) + Row::total(weighted_mask_);
    }
  }

  const LossPass& pass_;
  const int64_t width_;
  HeadSums* sums_;
  WeightRows<Row> rows_;
  int64_t image_ = 0;
  Sum bce_weight_, weighted_mask_;
};

template <class Row, class T>
void run_bands(const LossPass& pass) {
#pragma omp parallel num_threads(pass.threads) if (pass.threads > 1)
  {
    Band<Row> band(pass, pass.scratch + omp_get_thread_num() * pass.scratch_bytes);
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < pass.images * pass.bands; ++unit) band.template run<T>(unit);
  }
}

}  // namespace

void structure_loss_pass(const LossPass& pass) {
  switch (pass.logits_dtype) {
    case DType::kF64: return run_bands<DoubleRow, double>(pass);
    case DType::kF32: return run_bands<FloatRow, float>(pass);
    case DType::kBF16: return run_bands<FloatRow, bfloat_t>(pass);
    default: return run_bands<FloatRow, half_t>(pass);
  }
}

}  // namespace fastclip::cpu::FASTCLIP_ISA
