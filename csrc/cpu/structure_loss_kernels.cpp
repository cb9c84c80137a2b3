// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
//
// A band walks its image row by row, and every head reads the finished weight row while it is in
// L1.
#include "structure_loss_kernels.h"

#include <omp.h>

#include "structure_loss_sums.h"
#include "structure_loss_weights.h"

namespace fastclip::cpu::FASTCLIP_ISA {
namespace {

// Whether the sigmoids wait for the second look in the gradient's place; written past the caches
// where none would hold them that long.
enum class Keep { kNothing, kCached, kStreamed };

// The heads' work on the rows of a band; kMasked where there is a map of valid pixels.
template <class Row, class T, bool kMasked>
class Band {
 public:
  typedef typename Row::Real Real;
  typedef typename Row::Vector Vector;
  typedef typename Row::Sum Sum;
  // float64 would lose digits of a slope near 0, and half precisions those of the sigmoid.
  static constexpr bool kKeeps = Row::kDType == DType::kF32 && sizeof(T) == sizeof(float);

  Band(const LossPass& pass, char* memory)
      : pass_(pass),
        width_(pass.width),
        sums_((HeadSums*)memory),
        rows_(pass, memory + pass.head_count * sizeof(HeadSums)) {}

  // Fills the band's sums.
  template <Keep kKeep>
  void sum(int64_t image, int64_t band) {
    for (int64_t h = 0; h < pass_.head_count; ++h) sums_[h] = HeadSums{};
    Sum bce_weight{}, weighted_mask{};
    each_row(image, band, [&](int64_t at, const typename WeightRows<Row>::Sums& common) {
      bce_weight += Row::widen(common.bce_weight);
      weighted_mask += Row::widen(common.mask);
      for (int64_t h = 0; h < pass_.head_count; ++h) {
        const T* row = (const T*)pass_.heads[h].logits + at;
        T* grad = kKeep != Keep::kNothing ? (T*)pass_.heads[h].grad : nullptr;
        grad != nullptr ? keep_row<kKeep>(row, grad + at, sums_[h])
                        : add_row<Keep::kNothing>(row, nullptr, sums_[h]);
      }
    });
    if (kKeep == Keep::kStreamed) stream_fence();
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

  // s = sigmoid(x), its slope s (1 - s), and e = exp(-|x|). Called, it would cost the loop a tenth.
  struct Sigmoid {
    Vector e, s, slope;
    __attribute__((always_inline)) explicit Sigmoid(Vector x) {
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

  // Calls `step` with each register of a row, and then with how much of one is left. That comes
  // behind the loop, in which nothing is called then, so that constants stay in registers.
  template <class F>
  FASTCLIP_INLINE void each_register(int64_t width, F step) {
    int64_t at = 0;
    for (; at + Row::kStep <= width; at += Row::kStep) step(at, Row::kStep);
    if (at < width) step(at, width - at);
  }

  // Streams where the row is aligned for it.
  template <Keep kKeep>
  void keep_row(const T* row, T* sigmoid, HeadSums& sums) {
    const bool aligned = (uintptr_t)sigmoid % sizeof(Vector) == 0;
    kKeep == Keep::kCached || aligned ? add_row<kKeep>(row, sigmoid, sums)
                                      : add_row<Keep::kCached>(row, sigmoid, sums);
  }

  // Not inlined, as write_row: a loop of its own has the registers for itself.
  template <Keep kKeep>
  __attribute__((noinline)) void add_row(const T* row, T* sigmoid, HeadSums& sums) {
    const Real *mask = rows_.mask, *weight = rows_.weight, *v = rows_.bce_weight();
    const Real* valid = rows_.valid;
    const int64_t width = width_;
    Vector bce_sum{}, intersection{}, sigmoids{};
    each_register(width, [&](int64_t at, int64_t left) __attribute__((always_inline)) {
      __builtin_prefetch(row + width + at);
      const Vector x = logit(row + at, valid + at, left);
      const Vector m = load_raw<Vector>(mask + at), w = load_raw<Vector>(weight + at);
      const Sigmoid known(x);
      const Vector bce = (at_least_0(x) - m * x) + log1p_unit(known.e);
      const Vector ws = w * known.s;
      bce_sum += load_raw<Vector>(v + at) * bce;
      intersection += ws * m;
      sigmoids += ws;
      if constexpr (kKeep == Keep::kCached) {
        __builtin_prefetch(sigmoid + width + at, 1);
        Row::write(sigmoid + at, known.s, left);
      } else if constexpr (kKeep == Keep::kStreamed) {
        Row::stream(sigmoid + at, known.s, left);
      }
    });
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
    each_register(width, [&](int64_t at, int64_t left) __attribute__((always_inline)) {
      Vector s, slope;
      if (kKept) {
        s = Row::read(grad + at, left);
        slope = s - s * s;
      } else {
        __builtin_prefetch(row + width + at);
        __builtin_prefetch(grad + width + at, 1);
        const Sigmoid known(logit(row + at, valid + at, left));
        s = known.s;
        slope = known.slope;
      }
      const Vector m = load_raw<Vector>(mask + at), w = load_raw<Vector>(weight + at);
      const Vector from_bce = load_raw<Vector>(v + at) * (g_bce * (s - m));
      const Vector from_iou = w * slope * (g_total - g_inter * m);
      Row::write(grad + at, from_bce + from_iou, left);
    });
  }

  const LossPass& pass_;
  const int64_t width_;
  HeadSums* sums_;
  WeightRows<Row> rows_;
};

// Sums, then gradients. With images enough for every thread each keeps to its image, whose maps are
// still in cache for the second look, its last band first; else all threads share every image.
template <Keep kKeep, class AnyBand>
void both(const LossPass& pass, AnyBand& band) {
  constexpr bool kKept = kKeep != Keep::kNothing;
  if (pass.images >= 4 * pass.threads || pass.images % pass.threads == 0) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t image = 0; image < pass.images; ++image) {
      for (int64_t b = 0; b < pass.bands; ++b) band.template sum<kKeep>(image, b);
      find_gradients(pass, image);
      for (int64_t b = pass.bands - 1; b >= 0; --b) band.template differentiate<kKept>(image, b);
    }
    return;
  }
  const int64_t units = pass.images * pass.bands;
#pragma omp for schedule(dynamic, 1)
  for (int64_t u = 0; u < units; ++u) band.template sum<kKeep>(u / pass.bands, u % pass.bands);
#pragma omp for schedule(dynamic, 1)
  for (int64_t image = 0; image < pass.images; ++image) find_gradients(pass, image);
#pragma omp for schedule(dynamic, 1)
  for (int64_t u = 0; u < units; ++u) {
    band.template differentiate<kKept>(u / pass.bands, u % pass.bands);
  }
}

template <class AnyBand>
void run(const LossPass& pass) {
#pragma omp parallel num_threads(pass.threads) if (pass.threads > 1)
  {
    AnyBand band(pass, pass.scratch + omp_get_thread_num() * pass.scratch_bytes);
    const int64_t units = pass.images * pass.bands;
    if (pass.work == LossWork::kBoth) {
      if constexpr (!AnyBand::kKeeps) {
        both<Keep::kNothing>(pass, band);
      } else {
        pass.streams ? both<Keep::kStreamed>(pass, band) : both<Keep::kCached>(pass, band);
      }
    } else {
#pragma omp for schedule(dynamic, 1)
      for (int64_t u = 0; u < units; ++u) {
        const int64_t image = u / pass.bands, b = u % pass.bands;
        pass.work == LossWork::kSums ? band.template sum<Keep::kNothing>(image, b)
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
