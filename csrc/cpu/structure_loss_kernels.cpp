// Compiled once per instruction-set level: see isa.h for the rule that goes with it.
//
// A band walks its image row by row. Column sums of the mask slide down in double (so soft masks do
// not drift), a window's row sum is gathered from power-of-two runs (so its cost is log2(window)),
// and every head reads the finished weight row while it is in L1.
#include "structure_loss_kernels.h"

#include <math.h>
#include <omp.h>

#include "simd.h"

namespace fastclip::cpu::FASTCLIP_ISA {
namespace {

// exp(-a) for a >= 0: 2^n exp(r), a minimax polynomial of relative error 3e-9. NaN goes through.
FASTCLIP_INLINE f32v exp_neg(f32v magnitude) {
  const f32v a = magnitude > 87.f ? splat(87.f) : magnitude;  // exp(-87) = 1e-38
  const f32v round = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const f32v shifted = a * -1.44269504f + round;
  const f32v n = shifted - round;
  const f32v r = (-a - n * 0.693359375f) + n * 2.12194440e-4f;  // n ln 2 in two parts
  const f32v r2 = r * r;
  const f32v low = r * 0.166665201f + 0.499999934f, high = r * 0.00836878041f + 0.0416683942f;
  const f32v e = ((r2 * 0.00138144671f + high) * r2 + low) * r2 + (r + 1.f);
  const i32v exponent = bit_cast<i32v>(shifted) << 23;  // n; the rounding bits fall off
  const f32v scaled = bit_cast<f32v>(bit_cast<i32v>(e) + exponent);
  return a == a ? scaled : a;
}

// log(1 + e) for 0 <= e <= 1: a minimax polynomial of relative error 3e-8. Both polynomials are
// summed as trees: as chains, their latency and not their count would set the pace.
FASTCLIP_INLINE f32v log1p_unit(f32v e) {
  const f32v e2 = e * e, e4 = e2 * e2;
  const f32v a = e * -0.499994931f + 0.99999997f, b = e * -0.248429821f + 0.333190968f;
  const f32v c = e * -0.136632453f + 0.191060064f, d = e * -0.0295052373f + 0.0782259478f;
  return ((e4 * 0.00523269411f + (d * e2 + c)) * e4 + (b * e2 + a)) * e;
}

FASTCLIP_INLINE double exp_neg(double a) { return exp(-a); }
FASTCLIP_INLINE double log1p_unit(double e) { return log1p(e); }

// How a row is walked: float32 in vectors, float64 one by one with libm.
struct FloatRow {
  typedef float Real;
  typedef f32v Vector;
  typedef f64v Sum;
  enum { kStep = kLanes };
  FASTCLIP_INLINE Sum widen(const Vector& v) { return __builtin_convertvector(v, f64v); }
  FASTCLIP_INLINE double total(const Sum& sum) { return sum_lanes(sum); }
  template <class T>
  FASTCLIP_INLINE Vector read(const T* p, int64_t left) {
    return left >= kLanes ? load(p) : load_part(p, left);
  }
  template <class T>
  FASTCLIP_INLINE void write(T* p, const Vector& v, int64_t left) {
    left >= kLanes ? store(p, v) : store_part(p, v, left);
  }
};

struct DoubleRow {
  typedef double Real;
  typedef double Vector;
  typedef double Sum;
  enum { kStep = 1 };
  FASTCLIP_INLINE Sum widen(double v) { return v; }
  FASTCLIP_INLINE double total(double sum) { return sum; }
  template <class T>
  FASTCLIP_INLINE double read(const T* p, int64_t) {
    return (double)*p;
  }
  FASTCLIP_INLINE double read(const half_t* p, int64_t) { return load_part(p, 1)[0]; }
  FASTCLIP_INLINE double read(const bfloat_t* p, int64_t) { return load_part(p, 1)[0]; }
  FASTCLIP_INLINE void write(double* p, double v, int64_t) { *p = v; }
};

// Room for whole vectors, and for a run's last unaligned one.
FASTCLIP_INLINE int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes + kLanes; }

template <class Row, class T>
FASTCLIP_INLINE void convert(const T* from, typename Row::Real* to, int64_t n) {
  for (int64_t i = 0; i < n; i += Row::kStep) {
    const typename Row::Vector v = Row::read(from + i, n - i);
    memcpy(to + i, &v, sizeof(v));
  }
}

template <class Row>
void convert_row(const void* from, DType dtype, int64_t at, int64_t n, typename Row::Real* to) {
  switch (dtype) {
    case DType::kF32: return convert<Row>((const float*)from + at, to, n);
    case DType::kF64: return convert<Row>((const double*)from + at, to, n);
    case DType::kBF16: return convert<Row>((const bfloat_t*)from + at, to, n);
    case DType::kF16: return convert<Row>((const half_t*)from + at, to, n);
    default: return convert<Row>((const uint8_t*)from + at, to, n);
  }
}

template <class Row>
struct Band {
  typedef typename Row::Real Real;
  typedef typename Row::Vector Vector;
  typedef typename Row::Sum Sum;

  const LossPass& pass;
  const int64_t width;
  int64_t image;
  Sum* sums;        // [heads][3]: BCE, intersection, sigmoid
  Sum common[2];    // BCE weight, weighted mask
  double* columns;  // sums of the mask over the window's rows
  Real* runs;       // column sums with the window's margins, then sums of 4, 16, ... of them
  int levels, digit[32];
  int64_t start[32];
  Real* box;       // sums of the mask over the window
  Real* mask;      // this row's mask, zero where it is not valid
  Real* valid;     // 1 or 0
  Real* weight;    // the boundary weight
  Real* entering;  // a row on its way into or out of the window

  Band(const LossPass& p, char* memory) : pass(p), width(p.width) {
    const int64_t row = padded(p.width);
    sums = (Sum*)memory;
    columns = (double*)(sums + 3 * p.head_count);
    box = (Real*)(columns + row);
    mask = box + row;
    valid = mask + row;
    weight = valid + row;
    entering = weight + row;
    runs = entering + row;
    find_digits();
    for (int64_t x = 0; x < row; ++x) box[x] = mask[x] = 0, valid[x] = x < width;
  }

  int64_t offset(int64_t y) const { return (image * pass.height + y) * width; }

  // Reads row y of the mask; with a valid map also that row, and zeroes the mask outside it.
  void read_mask(int64_t y, Real* to) {
    convert_row<Row>(pass.mask, pass.mask_dtype, offset(y), width, to);
    if (pass.valid == nullptr) return;
    convert_row<Row>(pass.valid, pass.valid_dtype, offset(y), width, valid);
    for (int64_t x = 0; x < width; ++x) {
      to[x] = valid[x] != 0 ? to[x] : (Real)0;
      valid[x] = valid[x] != 0 ? (Real)1 : (Real)0;
    }
  }

  void slide(int64_t y, double sign) {
    if (y < 0 || y >= pass.height) return;
    read_mask(y, entering);
    for (int64_t x = 0; x < width; ++x) columns[x] += sign * entering[x];
  }

  // box[x] = sum of columns[x - radius .. x + radius]. Runs of 1, 4, 16, ... columns are built in
  // place, and the window is put together from them by its digits in base 4 (-1, 0, 1 or 2): 31 is
  // two runs of 16 less one of 1. Three passes over the row at a window of 31, four at 101.
  void gather_box() {
    const int64_t r = pass.radius_x, end = width + 4 * r + 2;
    for (int64_t x = 0; x < r; ++x) runs[x] = 0;
    for (int64_t x = 0; x < width; ++x) runs[r + x] = (Real)columns[x];
    for (int64_t x = r + width; x < end; ++x) runs[x] = 0;
    for (int64_t x = 0; x < width; ++x) box[x] = 0;
    for (int level = 0, run = 1;; ++level, run *= 4) {
      const Real sign = digit[level] < 0 ? (Real)-1 : (Real)1;
      for (int k = 0; k < (digit[level] < 0 ? 1 : digit[level]); ++k) {
        const Real* from = runs + start[level] + k * run;
#pragma omp simd
        for (int64_t x = 0; x < width; ++x) box[x] += sign * from[x];
      }
      if (level + 1 == levels) return;
#pragma omp simd
      for (int64_t x = 0; x < end - 3 * run; ++x) {
        runs[x] = (runs[x] + runs[x + run]) + (runs[x + 2 * run] + runs[x + 3 * run]);
      }
    }
  }

  // The window's digits, lowest first, and where in it each level's runs start.
  void find_digits() {
    int64_t rest = 2 * pass.radius_x + 1;
    for (levels = 0; rest != 0; ++levels) {
      digit[levels] = rest % 4 == 3 ? -1 : (int)(rest % 4);
      rest = (rest - digit[levels]) / 4;
    }
    int64_t at = 0, run = 1;
    for (int level = 1; level < levels; ++level) run *= 4;
    for (int level = levels - 1; level >= 0; --level, run /= 4) {
      start[level] = digit[level] < 0 ? at - run : at;
      at += digit[level] * run;
    }
  }

  // weight = 1 + boundary_weight |box / window_area - mask|, and 0 where not valid.
  void weigh(int64_t y) {
    read_mask(y, mask);
    gather_box();
    const Real share = (Real)(pass.boundary_weight / pass.window_area);
    const Real whole = (Real)pass.boundary_weight;
    for (int64_t x = 0; x < width; ++x) {
      const Real edge = share * box[x] - whole * mask[x];
      weight[x] = valid[x] * (1 + (edge < 0 ? -edge : edge));
    }
    for (int64_t x = width; x < padded(width); ++x) mask[x] = valid[x] = weight[x] = 0;
  }

  const Real* bce_weight() const { return pass.weighted_bce ? weight : valid; }

  template <bool kMasked, class T>
  FASTCLIP_INLINE Vector logit(const Band& band, const T* row, int64_t x) {
    const Vector value = Row::read(row + x, band.width - x);
    if (!kMasked) return value;
    return load_raw<Vector>(band.valid + x) != 0 ? value : Vector{};  // NaN counts nowhere either
  }

  void forward_common() {
    Vector v_sum{}, m_sum{};
    for (int64_t x = 0; x < width; x += Row::kStep) {
      v_sum += load_raw<Vector>(bce_weight() + x);
      m_sum += load_raw<Vector>(weight + x) * load_raw<Vector>(mask + x);
    }
    common[0] += Row::widen(v_sum);
    common[1] += Row::widen(m_sum);
  }

  template <bool kMasked, class T>
  void forward_head(int64_t head, int64_t y) {
    const T* row = (const T*)pass.heads[head].logits + offset(y);
    const Real* v = bce_weight();
    Vector bce_sum{}, intersection{}, sigmoids{};
    for (int64_t at = 0; at < width; at += Row::kStep) {
      const Vector x = logit<kMasked>(*this, row, at);
      const Vector m = load_raw<Vector>(mask + at), w = load_raw<Vector>(weight + at);
      const Vector e = exp_neg(abs(x));
      const Vector r = 1 / (1 + e);
      const Vector s = x >= 0 ? r : e * r;
      const Vector bce = (1 - m) * x - (x < 0 ? x : Vector{}) + log1p_unit(e);  // as torch's
      const Vector ws = w * s;
      bce_sum += load_raw<Vector>(v + at) * bce;
      intersection += ws * m;
      sigmoids += ws;
    }
    sums[3 * head] += Row::widen(bce_sum);
    sums[3 * head + 1] += Row::widen(intersection);
    sums[3 * head + 2] += Row::widen(sigmoids);
  }

  template <bool kMasked, class T>
  void backward_head(int64_t head, int64_t y) {
    const T* row = (const T*)pass.heads[head].logits + offset(y);
    T* grad = (T*)pass.heads[head].grad + offset(y);
    const Real* v = bce_weight();
    const LossGradient& g = pass.gradients[image * pass.head_count + head];
    const Real g_bce = (Real)g.bce, g_total = (Real)g.total, g_inter = (Real)g.intersection;
    for (int64_t at = 0; at < width; at += Row::kStep) {
      const Vector x = logit<kMasked>(*this, row, at);
      const Vector m = load_raw<Vector>(mask + at), w = load_raw<Vector>(weight + at);
      const Vector e = exp_neg(abs(x));
      const Vector r = 1 / (1 + e);
      const Vector s = x >= 0 ? r : e * r;
      const Vector from_bce = load_raw<Vector>(v + at) * g_bce * (s - m);
      const Vector from_iou = w * (e * r * r) * (g_total - g_inter * m);  // s (1 - s) = e r r
      Row::write(grad + at, from_bce + from_iou, width - at);
    }
  }

  template <bool kMasked, class T>
  void heads(int64_t y) {
    if (pass.gradients != nullptr) {
      for (int64_t h = 0; h < pass.head_count; ++h) backward_head<kMasked, T>(h, y);
    } else {
      forward_common();
      for (int64_t h = 0; h < pass.head_count; ++h) forward_head<kMasked, T>(h, y);
    }
  }

  void write_sums(LossSums* out) const {
    for (int64_t h = 0; h < pass.head_count; ++h) {
      out[h].bce_weight = Row::total(common[0]);
      out[h].bce = Row::total(sums[3 * h]);
      out[h].intersection = Row::total(sums[3 * h + 1]);
      out[h].total = Row::total(sums[3 * h + 2]) + Row::total(common[1]);
    }
  }

  template <class T>
  void run(int64_t unit) {
    image = unit / pass.bands;
    const int64_t first = unit % pass.bands * pass.band_rows;
    const int64_t end = first + pass.band_rows < pass.height ? first + pass.band_rows : pass.height;
    for (int64_t i = 0; i < 3 * pass.head_count; ++i) sums[i] = Sum{};
    common[0] = common[1] = Sum{};
    for (int64_t x = 0; x < width; ++x) columns[x] = 0;
    for (int64_t y = first - pass.radius_y; y < first + pass.radius_y; ++y) slide(y, 1);
    for (int64_t y = first; y < end; ++y) {
      slide(y + pass.radius_y, 1);
      weigh(y);
      pass.valid != nullptr ? heads<true, T>(y) : heads<false, T>(y);
      slide(y - pass.radius_y, -1);
    }
    if (pass.sums != nullptr) write_sums(pass.sums + unit * pass.head_count);
  }
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
