#include "bindings/grad_norm/grad_norm.h"

#include <memory>

#include "bindings/arguments.h"
#include "bindings/threads.h"
#include "cpu/grad_norm/grad_norm.h"
#include "tensors/version.h"

namespace fastclip {
namespace {

// As torch promotes: float32 where float16 meets bfloat16.
DType promoted(const TensorList& list) {
  const auto bit = [](DType dtype) { return 1u << static_cast<int>(dtype); };
  if ((list.dtypes() & bit(DType::kF64)) != 0) return DType::kF64;
  if (list.dtypes() == bit(DType::kBF16)) return DType::kBF16;
  if (list.dtypes() == bit(DType::kF16)) return DType::kF16;
  return DType::kF32;
}

// Fills the list; where there is much to read, `pass` begins with what is listed.
void make(TensorList& list, py::handle tensors, bool take_grads, double p, cpu::NormPass& pass) {
  constexpr size_t kPrefetch = 32, kStep = 8;  // tensors
  constexpr size_t kSpare = 1024;              // chunks beyond one a tensor: 256 MB
  ask_torch_threads();
  Listing listing(list, tensors.ptr(), take_grads);
  while (listing.more(kPrefetch, false)) {
    const int threads = list.has_norm(p) ? pass.followers(list, listing.size()) : 1;
    if (threads == 1) continue;
    list.reserve(listing.size() + kSpare);
    Unlocked unlocked{Unlocked::Later{}};  // from the end of listing to that of reading
    pass.follow(list, threads, [&] {
      const bool goes_on = listing.more(kStep, true);
      if (!goes_on) unlocked.release();
      return goes_on;
    });
    break;
  }
  listing.all();
}

}  // namespace

py::list tensors_of(const TensorList& list) {
  py::list tensors(list.tensors().size());
  Py_ssize_t i = 0;
  for (PyObject* tensor : list.tensors()) {
    Py_INCREF(tensor);
    PyList_SET_ITEM(tensors.ptr(), i++, tensor);  // append would cost 16 ns each
  }
  return tensors;
}

double grad_norm(TensorList& list, double p) {
  require(list.on_cpu(), "tensors must be on the CPU");
  list.keep_memory();
  list.refresh();
  const Unlocked unlocked;
  double total;
  cpu::NormPass({p}).finish(list, &total, nullptr);
  return total;
}

void grad_norms(TensorList& list, const std::vector<double>& orders, py::handle norms,
                py::handle stats) {
  require(list.on_cpu(), "tensors must be on the CPU");
  list.keep_memory();
  list.refresh();
  const int64_t count = static_cast<int64_t>(orders.size() * list.tensors().size());
  const TensorView view = numbers(norms, "norms", DType::kF64, count);
  double (*rows)[4] = nullptr;
  if (!stats.is_none()) {
    const int64_t four = 4 * static_cast<int64_t>(list.tensors().size());
    rows = static_cast<double (*)[4]>(numbers(stats, "stats", DType::kF64, four).data);
  }
  const Unlocked unlocked;
  std::vector<double> totals(orders.size());
  cpu::NormPass(orders).finish(list, totals.data(), static_cast<double*>(view.data), rows);
}

void scale_grads(TensorList& list, double factor) {
  require(list.on_cpu(), "tensors must be on the CPU");
  list.require_writable();
  list.keep_memory();
  list.refresh();
  {
    const Unlocked unlocked;
    cpu::scale_grads(list, factor);
  }
  mark_written(tensors_of(list).ptr());
}

void scale_each(TensorList& list, py::handle factors) {
  require(list.on_cpu(), "tensors must be on the CPU");
  list.require_writable();
  list.refresh();
  const size_t count = list.tensors().size();
  const TensorView view = numbers(factors, "factors", DType::kF64, static_cast<int64_t>(count));
  const double* values = static_cast<const double*>(view.data);
  {
    const Unlocked unlocked;
    cpu::scale_each(list, values);
  }
  py::list written;
  for (size_t i = 0; i < count; ++i) {
    if (!(values[i] >= 1)) written.append(py::handle(list.tensors()[i]));
  }
  mark_written(written.ptr());
}

py::object clip_grads(py::handle tensors, bool take_grads, double p, std::optional<double> max_norm,
                      bool finite) {
  auto list = std::make_unique<TensorList>();
  cpu::NormPass pass({p});
  make(*list, tensors, take_grads, p, pass);
  const bool here = list->on_cpu() && !list->tensors().empty() && list->has_norm(p);
  if (!here) return py::cast(std::move(list));
  double norm;
  {
    const Unlocked unlocked;
    pass.finish(*list, &norm, nullptr);
  }
  if (finite && !stays_finite(norm, promoted(*list))) return py::cast(std::move(list));
  const double factor = max_norm ? *max_norm / (norm + cpu::kEps) : 1;
  if (!(factor >= 1)) {  // NaN scales too, and makes every gradient NaN
    list->require_writable();
    {
      const Unlocked unlocked;
      pass.scale(*list, factor);
    }
    mark_written(tensors_of(*list).ptr());
  }
  return py::reinterpret_steal<py::object>(new_number(norm, promoted(*list)));
}

}  // namespace fastclip
