// Sums over windows of 31 columns, by registers of 16. Compiled per instruction-set level, with
// internal linkage throughout: see the rule in isa.h.
#pragma once

#include "cpu/structure_loss/row.h"

namespace fastclip::cpu {
namespace {

// Sums of 2, 4, 8 and 16 columns, each step a register behind the last, and two of those less a
// column. Nothing is written in between, which takes a quarter less time than runs in memory.
template <class Row>
class Window31 {
 public:
  typedef typename Row::Vector Vector;
  static constexpr int64_t kRadius = 15;
  static constexpr int64_t kBehind = 4;  // registers from the last one pushed to that of `sum`

  // Takes the next register of columns.
  __attribute__((always_inline)) void push(Vector next) {
    const Vector two = one_ + Row::template shifted<1>(one_, next);
    const Vector four = two_ + Row::template shifted<2>(two_, two);
    const Vector eight = four_ + Row::template shifted<4>(four_, four);
    before_ = sixteen_;
    sixteen_ = eight_ + Row::template shifted<8>(eight_, eight);
    one_ = next, two_ = two, four_ = four, eight_ = eight;
  }

  // The sums around the register of columns that lies at `columns`, whose left neighbour is read.
  __attribute__((always_inline)) Vector sum(const typename Row::Real* columns) const {
    return before_ + sixteen_ - load_raw<Vector>(columns - Row::kStep);
  }

 private:
  Vector one_{}, two_{}, four_{}, eight_{}, sixteen_{};  // the last of each
  Vector before_{};                                      // the last but one of `sixteen_`
};

}  // namespace
}  // namespace fastclip::cpu
