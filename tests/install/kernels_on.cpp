// The baseline kernels of grad_norm on a processor that is emulated: norms and scaling of every
// dtype, in every kind of order, against sums in plain loops. Prints each fault; 0 where there is
// none.
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "cpu/grad_norm/kernels.h"

using fastclip::Chunk;
using fastclip::DType;
using namespace fastclip::cpu;

namespace {

int faults = 0;

void expect(const char* what, double got, double wanted, double tolerance) {
  const bool same = std::isnan(wanted) ? std::isnan(got) : got == wanted;
  if (same || std::fabs(got - wanted) <= tolerance * std::fabs(wanted)) return;
  std::printf("%s: got %.17g, expected %.17g\n", what, got, wanted);
  ++faults;
}

double norm(void* data, int64_t numel, DType dtype, NormKind kind, double p) {
  const Chunk chunk{data, numel, dtype, 0};
  const NormOrder order{kind, p};
  Scaled sum{};
  baseline::reduce_chunks(&chunk, 1, &order, 1, &sum);
  if (kind == NormKind::kMax || kind == NormKind::kMin) return sum.sum;
  return root(sum, p);
}

// `bits` is a type of the dtype's size, `from` and `to` its conversions.
template <class Bits, class From, class To>
void check(const char* name, DType dtype, From from, To to, double tolerance) {
  for (int64_t n : {1, 3, 4, 63, 64, 255, 256, 257, 5000}) {
    std::vector<Bits> x(n);
    double sum = 0, squares = 0, cubes = 0, largest = 0, smallest = 1e9;
    for (int64_t i = 0; i < n; ++i) {
      x[i] = from((i * 37 % 19 - 9.25) / 8);  // exact in every dtype
      const double v = std::fabs(to(x[i]));
      sum += v, squares += v * v, cubes += v * v * v;
      largest = std::fmax(largest, v), smallest = std::fmin(smallest, v);
    }
    expect(name, norm(x.data(), n, dtype, NormKind::kL1, 1), sum, tolerance);
    expect(name, norm(x.data(), n, dtype, NormKind::kL2, 2), std::sqrt(squares), tolerance);
    expect(name, norm(x.data(), n, dtype, NormKind::kPower, 3), std::cbrt(cubes), 1e-14);
    expect(name, norm(x.data(), n, dtype, NormKind::kMax, INFINITY), largest, 0);
    expect(name, norm(x.data(), n, dtype, NormKind::kMin, -INFINITY), smallest, 0);
    std::vector<Bits> scaled = x;
    const Chunk chunk{scaled.data(), n, dtype, 0};
    baseline::scale_chunks(&chunk, 1, 0.5);
    for (int64_t i = 0; i < n; ++i) expect(name, to(scaled[i]), to(x[i]) / 2, 0);
    x[n / 2] = from(std::numeric_limits<double>::quiet_NaN());
    expect(name, norm(x.data(), n, dtype, NormKind::kL2, 2), NAN, 0);
    expect(name, norm(x.data(), n, dtype, NormKind::kMax, INFINITY), NAN, 0);
  }
}

uint16_t upper_half(double v) {
  const float f = static_cast<float>(v);
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return static_cast<uint16_t>(bits >> 16 | (std::isnan(v) ? 0x40 : 0));
}

double from_upper_half(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

uint16_t to_half(double v) {  // of what half holds exactly
  if (std::isnan(v)) return 0x7e00;
  if (v == 0) return 0;
  int e;
  const double m = std::frexp(std::fabs(v), &e);  // 0.5 <= m < 1
  return (v < 0 ? 0x8000 : 0) | (e + 14) << 10 | (static_cast<int>(m * 2048) & 0x3ff);
}

double from_half(uint16_t h) {
  const int e = h >> 10 & 31, m = h & 0x3ff;
  const double v = e == 0 ? std::ldexp(m, -24) : std::ldexp(m + 1024, e - 25);
  return e == 31 ? NAN : h & 0x8000 ? -v : v;
}

void check_range() {
  for (double scale : {5e-324, 1e-310, 1e-200, 1e-160, 1.0, 1e160, 1e200, 1e300}) {
    double x[] = {3 * scale, 4 * scale};
    expect("range", norm(x, 2, DType::kF64, NormKind::kL2, 2), 5 * scale, 1e-15);
    expect("range", norm(x, 2, DType::kF64, NormKind::kL1, 1), 7 * scale, 1e-15);
    double y[] = {scale, scale, scale, scale, scale, scale, scale, scale};
    expect("range", norm(y, 8, DType::kF64, NormKind::kPower, 3), 2 * scale, 1e-15);
    expect("range", norm(y, 8, DType::kF64, NormKind::kPower, 300), scale * std::pow(8, 1 / 300.0),
           1e-14);
  }
}

}  // namespace

int main() {
  const auto same = [](double v) { return v; };
  const auto narrow = [](double v) { return static_cast<float>(v); };
  check<double>("float64", DType::kF64, same, same, 1e-14);
  check<float>("float32", DType::kF32, narrow, narrow, 1e-6);
  check<uint16_t>("bfloat16", DType::kBF16, upper_half, from_upper_half, 1e-6);
  check<uint16_t>("float16", DType::kF16, to_half, from_half, 1e-6);
  check_range();
  return faults;
}
