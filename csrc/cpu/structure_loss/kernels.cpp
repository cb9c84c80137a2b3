// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
//
// A band walks its image strip by strip, a few rows at a time, and every head reads the finished
// weights while they are in L1.
#include "cpu/structure_loss/kernels.h"

#include "cpu/structure_loss/sums.h"
#include "cpu/structure_loss/weights.h"

namespace fastclip::cpu::FASTCLIP_ISA {
namespace {

// Whether the sigmoids wait for the second pass in the gradient's place; written past the caches
// where none would hold them that long.
enum class Keep { kNothing, kCached, kStreamed };

// Which loss: the IoU formed per pixel, and a positive's own weight in the BCE. The stock one has
// neither, and its loops know nothing of them.
enum class Kind { kStock, kPositive, kPixel };

// The cross-entropy of a logit x with e = exp(-|x|); `positive` is the weight of a positive.
template <Kind kKind, class Vector, class Real>
FASTCLIP_INLINE Vector bce_of(const Vector& x, const Vector& e, const Vector& m, Real positive) {
  if constexpr (kKind == Kind::kStock) {
    return (at_least_0(x) - m * x) + log1p_unit(e);
  } else {
    const Vector log1p = log1p_unit(e);
    return (1 - m) * (at_least_0(x) + log1p) + positive * m * (at_least_0(-x) + log1p);
  }
}

// The heads' work on the rows of a band; kMasked where there is a map of valid pixels.
template <class Row, class T, bool kMasked, Kind kKind>
class Band {
 public:
  typedef typename Row::Real Real;
  typedef typename Row::Vector Vector;
  typedef typename Row::Sum Sum;
  // float64 would lose digits of a slope near 0, and half precisions those of the sigmoid.
  static constexpr bool kKeeps = Row::kDType == DType::kF32 && sizeof(T) == sizeof(float);

  Band(const LossPass& pass, char* memory)
      : pass_(pass),
        sums_((HeadSums*)memory),
        weights_(pass, memory + pass.head_count * sizeof(HeadSums)) {}

  // Fills the band's sums.
  template <Keep kKeep>
  void sum(int64_t image, int64_t band) {
    for (int64_t h = 0; h < pass_.head_count; ++h) sums_[h] = HeadSums{};
    Sum bce_weight{}, second{};
    each_strip(image, band, [&](int64_t at, int64_t pixels, const auto& common) {
      bce_weight += common.bce_weight;
      second += common.second;
      for (int64_t h = 0; h < pass_.head_count; ++h) {
        const T* logits = (const T*)pass_.heads[h].logits + at;
        T* grad = kKeep != Keep::kNothing ? (T*)pass_.heads[h].grad : nullptr;
        for (int64_t first = 0; first < pixels; first += kPiece) {
          const int64_t count = pixels - first < kPiece ? pixels - first : kPiece;
          grad != nullptr ? keep<kKeep>(logits, grad + at, first, count, sums_[h])
                          : add<Keep::kNothing>(logits, nullptr, first, count, sums_[h]);
        }
      }
    });
    if (kKeep == Keep::kStreamed) stream_fence();
    LossSums* out = pass_.sums + (image * pass_.bands + band) * pass_.head_count;
    for (int64_t h = 0; h < pass_.head_count; ++h) {
      out[h].bce_weight = Row::total(bce_weight);
      out[h].bce = Row::total(sums_[h].bce);
      out[h].intersection = Row::total(sums_[h].intersection);
      out[h].total = Row::total(sums_[h].sigmoid) + Row::total(second);
    }
  }

  // Writes the band's gradients, once the sums of the whole image are known.
  template <bool kKept>
  void differentiate(int64_t image, int64_t band) {
    each_strip(image, band, [&](int64_t at, int64_t pixels, const auto&) {
      for (int64_t h = 0; h < pass_.head_count; ++h) {
        if (pass_.heads[h].grad == nullptr) continue;
        const T* logits = (const T*)pass_.heads[h].logits + at;
        T* grad = (T*)pass_.heads[h].grad + at;
        const LossGradient& g = pass_.gradients[image * pass_.head_count + h];
        pass_.weighted_bce ? write<kKept, true>(logits, grad, pixels, g)
                           : write<kKept, false>(logits, grad, pixels, g);
      }
    });
  }

 private:
  typedef WeightRows<Row> Weights;
  static constexpr int64_t kChunk = 256;  // pixels between two loops, and their buffer
  // Pixels from those at work to those that are fetched; into L2, where they push out nothing that
  // the strip needs.
  static constexpr int64_t kAhead = 768;

  struct HeadSums {
    Sum bce, intersection, sigmoid;
  };

  // Calls `work` with where each strip of the band starts, its pixels, and the sums of its weights.
  template <class F>
  void each_strip(int64_t image, int64_t band, F work) {
    const int64_t first = band * pass_.band_rows, below = first + pass_.band_rows;
    const int64_t end = below < pass_.height ? below : pass_.height;
    if (pass_.pos_weight != nullptr) positive_ = (Real)pass_.pos_weight[image % pass_.channels];
    weights_.start(image, first);
    for (int64_t y = first; y < end; y += pass_.strip_rows) {
      const int64_t rows = end - y < pass_.strip_rows ? end - y : pass_.strip_rows;
      const int64_t at = (image * pass_.height + y) * pass_.width;
      work(at, rows * pass_.width, weights_.next(y, rows));
    }
  }

  // A logit that is not valid counts nowhere, NaN included.
  FASTCLIP_INLINE Vector logit(const T* x, const Real* valid, int64_t left) {
    const Vector value = Row::read(x, left);
    if (!kMasked) return value;
    return Row::read(valid, left) != 0 ? value : Vector{};
  }

  // Calls `step` with each register, its logit x and exp(-|x|). That is a loop of its own: a CPU
  // sees only so many instructions ahead, and in one loop each register waits for the last one's.
  template <class F>
  FASTCLIP_INLINE void each_logit(const T* logits, const Real* valid, int64_t pixels, F step) {
    alignas(Vector) Real exponentials[kChunk];
    for (int64_t first = 0; first < pixels; first += kChunk) {
      const int64_t end = pixels - first < kChunk ? pixels : first + kChunk;
      each_register<Row>(first, end, [&](int64_t at, int64_t left) __attribute__((always_inline)) {
        __builtin_prefetch(logits + kAhead + at, 0, 2);
        const Vector x = logit(logits + at, valid + at, left);
        store(exponentials + at - first, exp_neg(abs(x)));
      });
      each_register<Row>(first, end, [&](int64_t at, int64_t left) __attribute__((always_inline)) {
        const Vector e = load_raw<Vector>(exponentials + at - first);
        step(at, left, logit(logits + at, valid + at, left), e);
      });
    }
  }

  // Streams where the strip is aligned for it.
  template <Keep kKeep>
  void keep(const T* logits, T* sigmoid, int64_t first, int64_t pixels, HeadSums& sums) {
    const bool aligned = (uintptr_t)sigmoid % sizeof(Vector) == 0;
    kKeep == Keep::kCached || aligned ? add<kKeep>(logits, sigmoid, first, pixels, sums)
                                      : add<Keep::kCached>(logits, sigmoid, first, pixels, sums);
  }

  // Adds up a strip's pixels from `first` on. Not inlined, as `write`: loops of their own have the
  // registers for themselves.
  template <Keep kKeep>
  __attribute__((noinline)) void add(const T* logits, T* sigmoid, int64_t first, int64_t pixels,
                                     HeadSums& sums) {
    const Real *mask = weights_.mask + first, *weight = weights_.weight + first;
    const Real* v = weights_.bce_weight() + first;
    const Real positive = positive_, smooth = (Real)pass_.smooth;
    logits += first, sigmoid += first;
    Vector bce_sum{}, intersection{}, sigmoids{};
    const auto step = [&](auto at, auto left, auto x, auto e) __attribute__((always_inline)) {
      const Vector m = Row::read(mask + at, left), w = Row::read(weight + at, left);
      const Vector s = unit_or(x, e) / (1 + e);
      bce_sum += Row::read(v + at, left) * bce_of<kKind, Vector>(x, e, m, positive);
      if constexpr (kKind == Kind::kPixel) {
        const Vector negative = unit_or(-x, e) / (1 + e);  // 1 - s, with its digits near 0
        intersection += w * ((s * (1 - m) + m * negative) / ((s + m) - s * m + smooth));
      } else {
        const Vector ws = w * s;
        intersection += ws * m;
        sigmoids += ws;
      }
      if constexpr (kKeep == Keep::kCached) {
        __builtin_prefetch(sigmoid + kAhead + at, 1, 2);
        Row::write(sigmoid + at, s, left);
      } else if constexpr (kKeep == Keep::kStreamed) {
        Row::stream(sigmoid + at, s, left);
      }
    };
    each_logit(logits, weights_.valid + first, pixels, step);
    sums.bce += Row::widen(bce_sum);
    sums.intersection += Row::widen(intersection);
    sums.sigmoid += Row::widen(sigmoids);
  }

  template <bool kKept, bool kWeighted>
  __attribute__((noinline)) void write(const T* logits, T* grad, int64_t pixels,
                                       const LossGradient& g) {
    const Real *mask = weights_.mask, *weight = weights_.weight, *valid = weights_.valid;
    const Real g_bce = (Real)g.bce, g_total = (Real)g.total, g_inter = (Real)g.intersection;
    const Real positive = positive_, smooth = (Real)pass_.smooth;
    const auto put = [&](auto at, auto left, auto s, auto slope) __attribute__((always_inline)) {
      const Vector m = Row::read(mask + at, left), w = Row::read(weight + at, left);
      Vector bce, iou;
      if constexpr (kKind == Kind::kStock) {
        bce = g_bce * (s - m);
      } else {
        bce = g_bce * ((1 - m) * s - positive * m * (1 - s));
      }
      if constexpr (kKind == Kind::kPixel) {
        const Vector either = (s + m) - s * m + smooth;
        iou = slope * g_total * ((smooth - 2 * smooth * m - m * m) / (either * either));
      } else {
        iou = slope * (g_total - g_inter * m);
      }
      const Vector d = kWeighted ? w * (bce + iou) : Row::read(valid + at, left) * bce + w * iou;
      Row::write(grad + at, d, left);
    };
    const auto take = [&](int64_t at, int64_t left) __attribute__((always_inline)) {
      const Vector s = Row::read(grad + at, left);
      put(at, left, s, s - s * s);
    };
    const auto make = [&](auto at, auto left, auto x, auto e) __attribute__((always_inline)) {
      __builtin_prefetch(grad + kAhead + at, 1, 2);
      const Vector r = 1 / (1 + e);
      put(at, left, unit_or(x, e) * r, e * r * r);
    };
    if constexpr (kKept) {
      each_register<Row>(0, pixels, take);
    } else {
      each_logit(logits, valid, pixels, make);
    }
  }

  const LossPass& pass_;
  HeadSums* sums_;
  Weights weights_;
  Real positive_ = 1;  // the weight of a positive, in the channel at work
};

template <Keep kKeep, class AnyBand>
void run(const LossPass& pass, LossStep step, AnyBand& band, LossUnits units) {
  constexpr bool kKept = kKeep != Keep::kNothing;
  for (int64_t unit; (unit = units.next(units.context)) >= 0;) {
    const int64_t image = unit / pass.bands, b = unit % pass.bands;
    switch (step) {
      case LossStep::kSums: band.template sum<kKeep>(image, b); break;
      case LossStep::kGradients: band.template differentiate<kKept>(image, b); break;
      case LossStep::kImages:
        for (int64_t b = 0; b < pass.bands; ++b) band.template sum<kKeep>(unit, b);
        find_gradients(pass, unit);
        // The maps are still in cache, the last band's above all.
        for (int64_t b = pass.bands - 1; b >= 0; --b) {
          band.template differentiate<kKept>(unit, b);
        }
    }
  }
}

template <class AnyBand>
void run(const LossPass& pass, LossStep step, char* scratch, LossUnits units) {
  AnyBand band(pass, scratch);
  if constexpr (AnyBand::kKeeps) {
    if (pass.work == LossWork::kBoth) {
      return pass.streams ? run<Keep::kStreamed>(pass, step, band, units)
                          : run<Keep::kCached>(pass, step, band, units);
    }
  }
  run<Keep::kNothing>(pass, step, band, units);
}

template <class Row, class T>
void run(const LossPass& pass, LossStep step, char* scratch, LossUnits units) {
  if (pass.pixel_iou) return run<Band<Row, T, true, Kind::kPixel>>(pass, step, scratch, units);
  if (pass.pos_weight != nullptr) {
    return run<Band<Row, T, true, Kind::kPositive>>(pass, step, scratch, units);
  }
  pass.valid != nullptr ? run<Band<Row, T, true, Kind::kStock>>(pass, step, scratch, units)
                        : run<Band<Row, T, false, Kind::kStock>>(pass, step, scratch, units);
}

}  // namespace

void structure_loss_units(const LossPass& pass, LossStep step, char* scratch, LossUnits units) {
  switch (pass.logits_dtype) {
    case DType::kF64: return run<DoubleRow, double>(pass, step, scratch, units);
    case DType::kF32: return run<FloatRow, float>(pass, step, scratch, units);
    case DType::kBF16: return run<FloatRow, bfloat_t>(pass, step, scratch, units);
    default: return run<FloatRow, half_t>(pass, step, scratch, units);
  }
}

}  // namespace fastclip::cpu::FASTCLIP_ISA
