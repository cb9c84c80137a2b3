#include "cpu/clip_value/clip_value.h"

#include <memory>

#include "cpu/clip_value/kernels.h"
#include "threads/shares.h"

namespace fastclip::cpu {
namespace {

void clip_chunks(const Chunk* chunks, int64_t count, double limit, bool* written) {
  FASTCLIP_DISPATCH(clip_values(chunks, count, limit, written))
}

}  // namespace

std::vector<bool> clip_values(const TensorList& list, double limit) {
  const std::vector<Chunk>& chunks = list.chunks();
  const int64_t tasks = static_cast<int64_t>(list.tasks().size()) - 1;
  const auto written = std::make_unique<bool[]>(chunks.size());
  const bool threaded = list.bytes() >= kSerialBytes && !list.has_overlaps();
  each_task(tasks, threaded ? threads_for(tasks) : 1, [&](int64_t task, int) {
    const int64_t begin = list.tasks()[task], end = list.tasks()[task + 1];
    clip_chunks(chunks.data() + begin, end - begin, limit, written.get() + begin);
  });
  std::vector<bool> tensors(list.tensors().size());
  for (size_t c = 0; c < chunks.size(); ++c) {
    if (written[c]) tensors[chunks[c].tensor] = true;
  }
  return tensors;
}

}  // namespace fastclip::cpu
