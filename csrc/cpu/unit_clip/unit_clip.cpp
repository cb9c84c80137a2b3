#include "cpu/unit_clip/unit_clip.h"

#include <algorithm>

#include "tensors/units.h"
#include "threads/shares.h"

namespace fastclip::cpu {
namespace {

void clip_units(UnitPiece* pieces, int64_t count, UnitRule rule) {
  FASTCLIP_DISPATCH(clip_units(pieces, count, rule))
}

void scale_parts(UnitPiece* pieces, int64_t count) { FASTCLIP_DISPATCH(scale_parts(pieces, count)) }

constexpr int64_t kPieceBytes = 256 * 1024;  // of the gradient; with its weight it fits L2
constexpr int64_t kTaskBytes = 128 * 1024;   // a task is worth a thread's trip to the queue
constexpr int64_t kPieceOverheadBytes = 512;
constexpr int64_t kSerialGradBytes = kSerialBytes / 2;  // each is read with its weight

bool on_cpu(const TensorView& view) {
  return view.device.type == dlpack::kCPU || view.device.type == dlpack::kCUDAHost;
}

}  // namespace

bool UnitClip::add(const TensorView& weight, const TensorView& grad) {
  if (!on_cpu(weight) || !on_cpu(grad) || !have_whole_units(weight, grad)) return false;
  const int64_t bytes = grad.numel * item_size(grad.dtype);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(grad.data);
  grads_.push_back({begin, begin + bytes});
  bytes_ += bytes;
  if (grad.numel > 0) cut(weight, grad, units_of(grad));
  return true;
}

void UnitClip::cut(const TensorView& weight, const TensorView& grad, int64_t units) {
  const int64_t size = grad.numel / units, item = item_size(grad.dtype);
  const int64_t most = kPieceBytes / item;
  const bool parts = size > most;
  has_parts_ |= parts;
  const int64_t step = parts ? most : most / size * size;
  for (int64_t u = 0; u < (parts ? units : 1); ++u) {
    const int64_t end = parts ? (u + 1) * size : grad.numel;
    for (int64_t start = u * size; start < end; start += step) {
      const int64_t numel = std::min(step, end - start);
      UnitPiece piece{};
      piece.weight = static_cast<const char*>(weight.data) + start * item;
      piece.grad = static_cast<char*>(grad.data) + start * item;
      piece.units = parts ? 0 : numel / size;
      piece.size = parts ? numel : size;
      piece.dtype = grad.dtype;
      piece.pair = static_cast<int32_t>(grads_.size()) - 1;
      piece.first = !parts || start == u * size;
      push(piece);
    }
  }
}

void UnitClip::push(const UnitPiece& piece) {
  pieces_.push_back(piece);
  const int64_t numel = piece.size * std::max<int64_t>(piece.units, 1);
  open_task_bytes_ += numel * item_size(piece.dtype) + kPieceOverheadBytes;
  if (open_task_bytes_ < kTaskBytes) return;
  bounds_.push_back(pieces_.size());
  open_task_bytes_ = 0;
}

bool UnitClip::overlaps() const {
  std::vector<Range> ranges = grads_;
  return any_overlap(ranges);
}

template <class F>
void UnitClip::each_task_of_pieces(F work) {
  const int64_t count = static_cast<int64_t>(bounds_.size()) - 1;
  each_task(count, bytes_ < kSerialGradBytes ? 1 : threads_for(count), [&](int64_t task, int) {
    work(pieces_.data() + bounds_[task], bounds_[task + 1] - bounds_[task]);
  });
}

void UnitClip::set_factors() {
  for (size_t first = 0, last; first < pieces_.size(); first = last) {
    Scaled weight = pieces_[first].weight_sum, grad = pieces_[first].grad_sum;
    for (last = first + 1; last < pieces_.size() && !pieces_[last].first; ++last) {
      weight = plus(weight, pieces_[last].weight_sum, 2);
      grad = plus(grad, pieces_[last].grad_sum, 2);
    }
    const double factor = unit_factor(weight, grad, rule_);
    for (size_t i = first; i < last; ++i) pieces_[i].factor = factor;
  }
}

std::vector<bool> UnitClip::run() {
  if (bounds_.back() != static_cast<int64_t>(pieces_.size())) bounds_.push_back(pieces_.size());
  each_task_of_pieces([&](UnitPiece* pieces, int64_t count) { clip_units(pieces, count, rule_); });
  if (has_parts_) {
    set_factors();
    each_task_of_pieces(scale_parts);
  }
  std::vector<bool> written(grads_.size());
  for (const UnitPiece& piece : pieces_) {
    if (piece.written) written[piece.pair] = true;
  }
  return written;
}

}  // namespace fastclip::cpu
