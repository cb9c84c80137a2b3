// Sums of powers past double's range, in plain double: long double has a wider range on x86 Linux
// alone. Static throughout, for files compiled per level: see the rule in isa.h.
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>

namespace fastclip::cpu {

// Stands for sum * unit^p, where p is the order of the norm.
struct Scaled {
  double sum;
  double unit;
};

// What |x| is divided by where the largest of a chunk (for p < 0 the smallest) is `extreme`: a
// power of two, so that nothing is rounded. A subnormal unit would be zero where such numbers are
// flushed.
static inline double unit_below(double extreme) {
  uint64_t bits;
  __builtin_memcpy(&bits, &extreme, sizeof(bits));
  bits &= 0x7ff0000000000000ull;
  double unit;
  __builtin_memcpy(&unit, &bits, sizeof(unit));
  return bits == 0 ? DBL_MIN : unit;
}

static inline Scaled plus(Scaled a, Scaled b, double p) {
  if (a.unit == b.unit) return {a.sum + b.sum, a.unit};
  if (b.sum == 0) return a;
  if (a.sum == 0) return b;
  const double plain = a.sum + b.sum;
  if (!(plain <= DBL_MAX)) return {plain, 1};  // infinite or NaN in any unit
  const bool a_leads = (a.unit > b.unit) == (p > 0);
  const Scaled large = a_leads ? a : b, small = a_leads ? b : a;
  return {large.sum + small.sum * pow(small.unit / large.unit, p), large.unit};
}

static inline double root(Scaled x, double p) {
  if (p == 2) return x.unit * sqrt(x.sum);
  if (p == 1) return x.unit * x.sum;
  const double whole = pow(x.sum, 1 / p);
  if (whole <= DBL_MAX) return x.unit * whole;
  const double half = pow(x.sum, 0.5 / p);  // the root may overflow where its product does not
  return x.unit * half * half;
}

}  // namespace fastclip::cpu
