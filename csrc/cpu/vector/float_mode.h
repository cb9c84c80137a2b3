// How a thread rounds, and whether it flushes denormal numbers to zero. torch.set_flush_denormal
// sets it for the calling thread alone: a result must not depend on which thread read what.
// Internal linkage throughout: see the rule in isa.h.
#pragma once

#include <stdint.h>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace fastclip::cpu {
namespace {

static inline uint64_t float_mode() {
#if defined(__SSE__)
  return _mm_getcsr() & ~0x3fu;  // but the flags of what has happened
#elif defined(__aarch64__)
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#else
  return 0;
#endif
}

static inline void set_float_mode(uint64_t mode) {
#if defined(__SSE__)
  _mm_setcsr(static_cast<unsigned>(mode) | (_mm_getcsr() & 0x3fu));
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#else
  (void)mode;
#endif
}

// Gives this thread another's mode for the length of a block.
class FloatModeOf {
 public:
  explicit FloatModeOf(uint64_t mode) : before_(float_mode()) {
    if (mode != before_) set_float_mode(mode);
  }
  ~FloatModeOf() { set_float_mode(before_); }
  FloatModeOf(const FloatModeOf&) = delete;
  FloatModeOf& operator=(const FloatModeOf&) = delete;

 private:
  const uint64_t before_;
};

}  // namespace
}  // namespace fastclip::cpu
