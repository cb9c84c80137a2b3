// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
//
// A band walks its image row by row. Column sums of the mask slide down, a window's row sum is
// gathered from runs of 1, 4, 16, ... columns (so its cost is log4(window)), and every head reads
// the finished weight row while it is in L1.
#include "structure_loss_kernels.h"

#include <omp.h>

#include "structure_loss_row.h"
#include "structure_loss_sums.h"

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

// The heads' work on the rows of a band; kMasked where there is a map of valid pixels.
template <class Row, class T, bool kMasked>
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

  // Fills the band's sums; with kKeep every sigmoid waits in the gradient's place.
  template <bool kKeep>
  void sum(int64_t image, int64_t band) {
    for (int64_t h = 0; h < pass_.head_count; ++h) sums_[h] = HeadSums{};
    Sum bce_weight{}, weighted_mask{};
    each_row(image, band, [&](int64_t at, const typename WeightRows<Row>::Sums& common) {
      bce_weight += Row::widen(common.bce_weight);
      weighted_mask += Row::widen(common.mask);
      for (int64_t h = 0; h < pass_.head_count; ++h) {
        const T* row = (const T*)pass_.heads[h].logits + at;
        T* grad = kKeep ? (T*)pass_.heads[h].grad : nullptr;
        grad != nullptr ? add_row<true>(row, grad + at, sums_[h])
                        : add_row<false>(row, nullptr, sums_[h]);
      }
    });
    LossSums* out = pass_.sums + (image * pass_.bands + band) * pass_.head_count;
    for (int64_t h = 0; h < pass_.head_count; ++h) {
      out[h].bce_weight = Row::total(bce_weight);
      out[h].bce = Row::total(sums_[h].bce);
      out[h].intersection = Row::total(sums_[h].intersection);
      out[h].total = Row::total(sums_[h].sigmoid) + Row::total(weighted_mask);
    }
  }

  // Writes the band's gradients, once the sums of the whole image are known.
  template <bool kKept>
  void differentiate(int64_t image, int64_t band) {
    each_row(image, band, [&](int64_t at, const typename WeightRows<Row>::Sums&) {
      for (int64_t h = 0; h < pass_.head_count; ++h) {
        if (pass_.heads[h].grad == nullptr) continue;
        const T* row = (const T*)pass_.heads[h].logits + at;
        T* grad = (T*)pass_.heads[h].grad + at;
        write_row<kKept>(row, grad, pass_.gradients[image * pass_.head_count + h]);
      }
    });
  }

 private:
  struct HeadSums {
    Sum bce, intersection, sigmoid;
  };

  // s = sigmoid(x), its slope s (1 - s), and e = exp(-|x|).
  struct Sigmoid {
    Vector e, s, slope;
    explicit Sigmoid(Vector x) {
      e = exp_neg(abs(x));
      const Vector r = 1 / (1 + e), er = e * r;
      s = x >= 0 ? r : er;
      slope = er * r;
    }
  };

  // Calls `work` with where each row of the band starts, and the sums of its weights.
  template <class F>
  void each_row(int64_t image, int64_t band, F work) {
    const int64_t first = band * pass_.band_rows, below = first + pass_.band_rows;
    const int64_t end = below < pass_.height ? below : pass_.height;
    rows_.start(image, first);
    for (int64_t y = first; y < end; ++y) {
      work((image * pass_.height + y) * width_, rows_.next(y));
    }
  }

  // A logit that is not valid counts nowhere, NaN included.
  FASTCLIP_INLINE Vector logit(const T* x, const Real* valid, int64_t left) {
    const Vector value = Row::read(x, left);
    if (!kMasked) return value;
    return load_raw<Vector>(valid) != 0 ? value : Vector{};
  }

  // Not inlined, as write_row: a loop of its own has the registers for itself.
  template <bool kKeep>
  __attribute__((noinline)) void add_row(const T* row, T* sigmoid, HeadSums& sums) {
    const Real *mask = rows_.mask, *weight = rows_.weight, *v = rows_.bce_weight();
    const Real* valid = rows_.valid;
    const int64_t width = width_;
    Vector bce_sum{}, intersection{}, sigmoids{};
    for (int64_t at = 0; at < width; at += Row::kStep) {
      __builtin_prefetch(row + width + at);
      const Vector x = logit(row + at, valid + at, width - at);
      const Vector m = load_raw<Vector>(mask + at), w = load_raw<Vector>(weight + at);
      const Sigmoid known(x);
      const Vector bce = (at_least_0(x) - m * x) + log1p_unit(known.e);
      const Vector ws = w * known.s;
      bce_sum += load_raw<Vector>(v + at) * bce;
      intersection += ws * m;
      sigmoids += ws;
      if (kKeep) {
        __builtin_prefetch(sigmoid + width + at, 1);
        Row::write(sigmoid + at, known.s, width - at);
      }
    }
    sums.bce += Row::widen(bce_sum);
    sums.intersection += Row::widen(intersection);
    sums.sigmoid += Row::widen(sigmoids);
  }

  template <bool kKept>
  __attribute__((noinline)) void write_row(const T* row, T* grad, const LossGradient& g) {
    const Real *mask = rows_.mask, *weight = rows_.weight, *v = rows_.bce_weight();
    const Real* valid = rows_.valid;
    const int64_t width = width_;
    const Real g_bce = (Real)g.bce, g_total = (Real)g.total, g_inter = (Real)g.intersection;
    for (int64_t at = 0; at < width; at += Row::kStep) {
      Vector s, slope;
      if (kKept) {
        s = Row::read(grad + at, width - at);
        slope = s - s * s;
      } else {
        __builtin_prefetch(row + width + at);
        __builtin_prefetch(grad + width + at, 1);
        const Sigmoid known(logit(row + at, valid + at, width - at));
        s = known.s;
        slope = known.slope;
      }
      const Vector m = load_raw<Vector>(mask + at), w = load_raw<Vector>(weight + at);
      const Vector from_bce = load_raw<Vector>(v + at) * (g_bce * (s - m));
      const Vector from_iou = w * slope * (g_total - g_inter * m);
      Row::write(grad + at, from_bce + from_iou, width - at);
    }
  }

  const LossPass& pass_;
  const int64_t width_;
  HeadSums* sums_;
  WeightRows<Row> rows_;
};

// Sums, then gradients. With images enough for every thread each keeps to its image, whose maps are
// still in cache for the second look, its last band first; else all threads share every image.
template <class AnyBand>
void both(const LossPass& pass, AnyBand& band) {
  if (pass.images >= 4 * pass.threads || pass.images % pass.threads == 0) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t image = 0; image < pass.images; ++image) {
      for (int64_t b = 0; b < pass.bands; ++b) band.template sum<true>(image, b);
      find_gradients(pass, image);
      for (int64_t b = pass.bands - 1; b >= 0; --b) band.template differentiate<true>(image, b);
    }
    return;
  }
  const int64_t units = pass.images * pass.bands;
#pragma omp for schedule(dynamic, 1)
  for (int64_t u = 0; u < units; ++u) band.template sum<true>(u / pass.bands, u % pass.bands);
#pragma omp for schedule(dynamic, 1)
  for (int64_t image = 0; image < pass.images; ++image) find_gradients(pass, image);
#pragma omp for schedule(dynamic, 1)
  for (int64_t u = 0; u < units; ++u) {
    band.template differentiate<true>(u / pass.bands, u % pass.bands);
  }
}

template <class AnyBand>
void run(const LossPass& pass) {
#pragma omp parallel num_threads(pass.threads) if (pass.threads > 1)
  {
    AnyBand band(pass, pass.scratch + omp_get_thread_num() * pass.scratch_bytes);
    const int64_t units = pass.images * pass.bands;
    if (pass.work == LossWork::kBoth) {
      both(pass, band);
    } else {
#pragma omp for schedule(dynamic, 1)
      for (int64_t u = 0; u < units; ++u) {
        const int64_t image = u / pass.bands, b = u % pass.bands;
        pass.work == LossWork::kSums ? band.template sum<false>(image, b)
                                     : band.template differentiate<false>(image, b);
      }
    }
  }
}

template <class Row, class T>
void run(const LossPass& pass) {
  pass.valid != nullptr ? run<Band<Row, T, true>>(pass) : run<Band<Row, T, false>>(pass);
}

}  // namespace

void structure_loss_pass(const LossPass& pass) {
  switch (pass.logits_dtype) {
    case DType::kF64: return run<DoubleRow, double>(pass);
    case DType::kF32: return run<FloatRow, float>(pass);
    case DType::kBF16: return run<FloatRow, bfloat_t>(pass);
    default: return run<FloatRow, half_t>(pass);
  }
}

}  // namespace fastclip::cpu::FASTCLIP_ISA
