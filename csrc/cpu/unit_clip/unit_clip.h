// Adaptive gradient clipping, unit by unit, on CPU threads.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/unit_clip/kernels.h"
#include "tensors/overlap.h"
#include "tensors/tensor_view.h"

namespace fastclip::cpu {

// Pairs of a weight and its gradient, cut into pieces; tensors/units.h says what a unit is.
class UnitClip {
 public:
  explicit UnitClip(UnitRule rule) : rule_(rule) {}

  // False where the pair is not for the kernels: not both on the CPU, of one floating dtype and one
  // shape, and each unit without gaps. The views' tensors must outlive run().
  bool add(const TensorView& weight, const TensorView& grad);

  // Whether two gradients share memory; then the order of clipping counts, and run() has none.
  bool overlaps() const;

  // g *= unit_factor(|w|^2, |g|^2) for each unit, and no write where that is 1. Norms are summed in
  // a fixed order, so no result depends on the number of threads. Returns for each pair, in the
  // order of add(), whether its gradient was written.
  std::vector<bool> run();

 private:
  void cut(const TensorView& weight, const TensorView& grad, int64_t units);
  void push(const UnitPiece& piece);
  template <class F>
  void each_task_of_pieces(F work);  // work(UnitPiece* pieces, int64_t count), on threads
  void set_factors();

  UnitRule rule_;
  std::vector<UnitPiece> pieces_;
  std::vector<int64_t> bounds_{0};
  std::vector<Range> grads_;
  int64_t open_task_bytes_ = 0;
  int64_t bytes_ = 0;
  bool has_parts_ = false;
};

}  // namespace fastclip::cpu
