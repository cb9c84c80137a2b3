// How a row of pixels is walked: float32 in registers, float64 one by one with libm. Compiled per
// instruction-set level, with internal linkage throughout: see the rule in isa.h.
#pragma once

#include "cpu/vector/exp_log.h"
#include "cpu/vector/simd.h"
#include "tensors/chunk.h"

namespace fastclip::cpu {
namespace {

// A sum of float32 goes on in float64 after so many pixels: after 100,000 it would have lost two
// digits. The strips of images that are no wider are no longer.
constexpr int64_t kPiece = 1024;

struct FloatRow {
  typedef float Real;
  typedef f32v Vector;
  typedef f64v Sum;
  static constexpr int kStep = kLanes;
  static constexpr bool kShifts = kLanes == 16;
  template <int lanes>
  FASTCLIP_INLINE Vector shifted(const Vector& a, const Vector& b) {
    return shifted_lanes<lanes>(a, b);
  }
  static constexpr DType kDType = DType::kF32;
  FASTCLIP_INLINE Sum widen(const Vector& v) { return __builtin_convertvector(v, f64v); }
  FASTCLIP_INLINE double total(const Sum& sum) { return sum_lanes(sum); }
  // The first `left` of a register's elements; the others are zero, and are not written.
  template <class T>
  FASTCLIP_INLINE Vector read(const T* p, int64_t left) {
    return left >= kLanes ? load(p) : load_part(p, left);
  }
  template <class T>
  FASTCLIP_INLINE void write(T* p, const Vector& v, int64_t left) {
    left >= kLanes ? store(p, v) : store_part(p, v, left);
  }
  // As write, past the caches, to an aligned address.
  FASTCLIP_INLINE void stream(float* p, const Vector& v, int64_t left) {
    left >= kLanes ? store_past_cache(p, v) : store_part(p, v, left);
  }
};

struct DoubleRow {
  typedef double Real;
  typedef double Vector;
  typedef double Sum;
  static constexpr int kStep = 1;
  static constexpr bool kShifts = false;
  template <int lanes>
  FASTCLIP_INLINE double shifted(double, double b) {
    return b;
  }
  static constexpr DType kDType = DType::kF64;
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

// Room for whole registers, and one more that an unaligned read may touch.
FASTCLIP_INLINE int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes + kLanes; }

// Room for `n` of them, from the front of `memory`.
template <class Real>
FASTCLIP_INLINE Real* take(char*& memory, int64_t n) {
  Real* row = (Real*)memory;
  memory += padded(n) * sizeof(Real);
  return row;
}

FASTCLIP_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Calls `step` with each register of first .. end, and then with how much of one is left. That
// comes behind the loop, in which nothing is called then, so that constants stay in registers.
template <class Row, class F>
FASTCLIP_INLINE void each_register(int64_t first, int64_t end, F step) {
  int64_t at = first;
  for (; at + Row::kStep <= end; at += Row::kStep) step(at, Row::kStep);
  const int64_t left = end - at;
  if (left >= Row::kStep) __builtin_unreachable();  // GCC makes code for a whole one else
  if (left > 0) step(at, left);
}

template <class Row, class T>
FASTCLIP_INLINE void convert(const T* from, typename Row::Real* to, int64_t n) {
  for (int64_t i = 0; i < n; i += Row::kStep) {
    const typename Row::Vector v = Row::read(from + i, n - i);
    memcpy(to + i, &v, sizeof(v));
  }
}

// Elements `at` .. `at + n` of a map of any dtype, then zeros to the end of the register.
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

}  // namespace
}  // namespace fastclip::cpu
