// Sums over windows of any width, from runs of 1, 4, 16, ... columns: their cost is log4(window).
// Compiled per instruction-set level, with internal linkage throughout: see the rule in isa.h.
#pragma once

#include "cpu/structure_loss/row.h"

namespace fastclip::cpu {
namespace {

// The column sums of a row, and the sums of the windows around each of them.
template <class Row>
class WindowRuns {
 public:
  typedef typename Row::Real Real;
  typedef typename Row::Vector Vector;

  WindowRuns(int64_t radius, int64_t width, char*& memory) : width_(width) {
    find_terms(radius);
    for (int level = 0; level < levels_; ++level) runs_[level] = take<Real>(memory, length_[level]);
    for (int i = 0; i < terms_; ++i) term_[i].from = runs_[term_[i].level] + term_[i].start;
  }

  // Those of the image; around them lie zeros.
  Real* columns() const { return runs_[0] + margin_; }

  void clear_columns() {
    for (int64_t x = 0; x < length_[0]; ++x) runs_[0][x] = 0;
  }

  // Calls `step` with where each register of the row starts, what is left of it, and its sums.
  template <class F>
  __attribute__((always_inline)) void each_sum(F step) {
    for (int level = 1, run = 1; level < levels_; ++level, run *= 4) add_runs(level, run);
    // In float64, where libm takes most of the time, of the usual window of 31 alone.
    if (Row::kStep == 1 && terms_ != 3) return add_terms<0>(step);
    switch (terms_) {
      case 1: return add_terms<1>(step);
      case 2: return add_terms<2>(step);
      case 3: return add_terms<3>(step);
      case 4: return add_terms<4>(step);
      case 5: return add_terms<5>(step);
      default: return add_terms<0>(step);
    }
  }

 private:
  struct Term {
    int level;
    int64_t start;
    Real sign;
    const Real* from;
  };

  // So few terms, known to the compiler, stay in registers; kTerms 0 stands for any number.
  template <int kTerms, class F>
  __attribute__((always_inline)) void add_terms(F step) {
    const int terms = kTerms > 0 ? kTerms : terms_;
    Term term[kTerms > 0 ? kTerms : 64];
    for (int i = 0; i < terms; ++i) term[i] = term_[i];
    each_register<Row>(0, width_, [&](int64_t x, int64_t left) __attribute__((always_inline)) {
      Vector box{};
#pragma GCC unroll 8
      for (int i = 0; i < terms; ++i) box += term[i].sign * load_raw<Vector>(term[i].from + x);
      step(x, left, box);
    });
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

  // The window is put together from runs by its digits in base 4 (-1, 0, 1 or 2): 31 is two runs of
  // 16 less one of 1.
  void find_terms(int64_t radius) {
    int digit[32];
    int64_t rest = 2 * radius + 1;
    for (levels_ = 0; rest != 0; ++levels_) {
      digit[levels_] = rest % 4 == 3 ? -1 : (int)(rest % 4);
      rest = (rest - digit[levels_]) / 4;
      length_[levels_] = 0;
    }
    margin_ = padded(radius) - kLanes;
    int64_t at = margin_ - radius, run = 1;
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

  const int64_t width_;
  int levels_ = 0, terms_ = 0;
  int64_t margin_;      // columns left of the image; its first is aligned
  int64_t length_[32];  // of each level's runs
  Term term_[64];
  Real* runs_[32];  // the first are the columns
};

}  // namespace
}  // namespace fastclip::cpu
