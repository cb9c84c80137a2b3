// Norms of tensor lists and their scaling, on CPU threads.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/grad_norm/kernels.h"
#include "tensors/tensor_list.h"

namespace fastclip::cpu {

constexpr double kEps = 1e-6;  // torch's: what is added to a norm that divides

// One read of a list, for its norms of some orders: any real but 0 and NaN, or +-infinity. Sums are
// taken in a fixed order, so no result depends on threads. Values whose powers leave their dtype's
// range are summed again in a wider one.
class NormPass {
 public:
  explicit NormPass(const std::vector<double>& orders);

  // How many threads are worth waking to read a list that is to have so many tensors, while it is
  // made; one means none but its maker.
  static int followers(const TensorList& list, size_t tensors);
  // Reads, on other threads, what `more` lists on this one, until it returns false; then on all.
  // It must leave the storage of `list` where it is.
  void follow(const TensorList& list, int threads, const std::function<bool()>& more);
  // Reads what is left of the whole list. For each order p: the norm of every tensor into
  // per_tensor[p][tensor], unless it is null, and the norm of those into total[p]. With `stats`,
  // from the same read, where nothing was read before: the mean, standard deviation (of a sample),
  // smallest and largest element of every tensor into stats[tensor]; NaN where one has none.
  void finish(const TensorList& list, double* total, double* per_tensor,
              double (*stats)[4] = nullptr);
  // Multiplies every element by `factor`, on the thread that has read it, what it read last first:
  // that its caches still hold. Where cores have caches of their own, one that writes what another
  // has just read waits for it, and both passes take twice as long. Computed in float32 (float64
  // for float64).
  void scale(const TensorList& list, double factor) const;

 private:
  void read(const TensorList& list, int64_t task, size_t thread);

  std::vector<NormOrder> orders_;
  std::vector<Scaled> partial_;   // [chunks, orders]
  std::vector<Moments> moments_;  // [chunks]; empty where nobody asks
  std::vector<int32_t> before_;   // the task that its thread has read before each task, or -1
  std::vector<int32_t> last_;     // the last task of each thread, or -1
};

// The same without a pass before it.
void scale_grads(const TensorList& list, double factor);
// Each tensor by a factor of its own; those of 1 and more are not written.
void scale_each(const TensorList& list, const double* factors);

}  // namespace fastclip::cpu
