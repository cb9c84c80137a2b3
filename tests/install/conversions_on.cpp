// The conversions of cpu/vector/simd.h on a processor that is emulated: every float16 and bfloat16
// loaded, and floats at, beside and half-way between them stored, against arithmetic in double.
// Prints the first faults; 0 where there is none.
#include <cmath>
#include <cstdio>
#include <initializer_list>

#include "cpu/vector/simd.h"

using namespace fastclip::cpu;

namespace {

int faults = 0;

void expect(const char* what, uint32_t of, double got, double wanted) {
  const bool same = std::isnan(wanted) ? std::isnan(got) : got == wanted;
  if (same && std::signbit(got) == std::signbit(wanted)) return;
  if (++faults < 20) std::printf("%s of 0x%x: got %a, expected %a\n", what, of, got, wanted);
}

// A format of 16 bits: a sign, an exponent, and `fraction` bits.
struct Format {
  const char* name;
  int fraction, smallest;  // the exponent of the smallest normal number

  double value(uint16_t bits) const {
    const int exponent = (bits & 0x7fff) >> fraction, rest = bits & ((1 << fraction) - 1);
    const int last = (0x7fff >> fraction), whole = 1 << fraction;
    const double sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == last) return rest ? std::copysign(NAN, sign) : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(rest, smallest - fraction);
    return sign * std::ldexp(whole + rest, smallest + exponent - 1 - fraction);
  }

  double largest() const { return value(static_cast<uint16_t>((0x7fff & -(1 << fraction)) - 1)); }

  double rounded(double x) const {  // to nearest, ties to even
    if (x == 0 || std::isnan(x) || std::isinf(x)) return x;
    const int exponent = std::ilogb(x) < smallest ? smallest : std::ilogb(x);
    const double result =
        std::ldexp(std::nearbyint(std::ldexp(x, fraction - exponent)), exponent - fraction);
    return std::fabs(result) > largest() ? std::copysign(INFINITY, x) : result;
  }
};

template <class T>
void check(const Format& format) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    T x[kLanes] = {};
    const int lane = static_cast<int>(bits % kLanes);
    x[lane].bits = static_cast<uint16_t>(bits);
    const double wanted = format.value(x[lane].bits);
    expect(format.name, bits, load(x)[lane], wanted);
    double next = format.value(static_cast<uint16_t>(bits + 1));
    if (std::isinf(next)) next = 2 * wanted - format.value(static_cast<uint16_t>(bits - 1));
    const float middle = static_cast<float>(wanted / 2 + next / 2);
    const float any = bit_cast<float>(bits << 16 | 0xffff);  // NaN of every fraction among them
    for (float f : {static_cast<float>(wanted), middle, std::nextafter(middle, -INFINITY),
                    std::nextafter(middle, INFINITY), any}) {
      f32v lanes{};
      lanes[lane] = f;
      store(x, lanes);
      // The sign of NaN is free in bfloat16, where one NaN stands for all.
      const double got = format.value(x[lane].bits), exact = format.rounded(f);
      if (!std::isnan(exact) || !std::isnan(got)) expect(format.name, bits, got, exact);
    }
  }
}

void check_bytes() {
  for (uint32_t first = 0; first < 256; ++first) {
    uint8_t x[kLanes];
    for (int l = 0; l < kLanes; ++l) x[l] = static_cast<uint8_t>(first + 37 * l);
    for (int l = 0; l < kLanes; ++l) expect("uint8", x[l], load(x)[l], x[l]);
  }
}

}  // namespace

int main() {
  check<half_t>({"float16", 10, -14});
  check<bfloat_t>({"bfloat16", 7, -126});
  check_bytes();
  return faults != 0;
}
