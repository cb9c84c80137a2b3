#include "bindings/grad_norm/sorting.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensors/prefetch.h"
#include "tensors/python.h"
#include "tensors/tensor_view.h"

namespace fastclip {
namespace {

constexpr dlpack::Device kUnknown{static_cast<dlpack::DeviceType>(0), 0};
constexpr Py_ssize_t kBlock = 32;  // tensors that take each step together: memory comes meanwhile

py::object checked(PyObject* object) {
  if (object == nullptr) throw PythonError{};
  return py::reinterpret_steal<py::object>(object);
}

py::object or_none(const py::object& object) { return object ? object : py::none(); }

// Tuples of placements by which of them are equal. A comparison takes 120 ns and four cache misses,
// and a parameter's tuple is the same object at each step: which it is equal to is remembered by
// its place in the list and its identity, for as long as it is held here, so that no other can come
// to its address.
class Placements {
 public:
  // The one that stands for all that are equal to it.
  py::object canonical(const py::object& placements, size_t place, const py::object& likely) {
    if (placements.is(likely)) return likely;
    if (place < remembered_.size() && remembered_[place].placements.is(placements)) {
      return remembered_[place].stands;
    }
    py::object stands = stands_for(placements, likely);  // another thread may come in between
    if (place >= remembered_.size()) remembered_.resize(place + 1);
    Entry entry{placements, stands};
    std::swap(remembered_[place], entry);  // what was there goes last: that may let others in
    return stands;
  }

  bool are_many() const { return distinct_.size() > 256; }

  // Before a list of so many: lets go what longer ones left.
  void shorten(size_t tensors) {
    const size_t most = 4 * tensors + 4096;
    if (remembered_.size() <= most) return;
    const std::vector<Entry> rest(std::make_move_iterator(remembered_.begin() + most),
                                  std::make_move_iterator(remembered_.end()));
    remembered_.resize(most);  // the rest goes last
  }

 private:
  struct Entry {
    py::object placements, stands;
  };

  py::object stands_for(const py::object& placements, const py::object& likely) {
    if (likely && equal(likely, placements)) return likely;
    for (size_t i = 0; i < distinct_.size(); ++i) {
      const py::object other = distinct_[i];
      if (equal(other, placements)) return other;
    }
    distinct_.push_back(placements);
    return placements;
  }

  static bool equal(const py::object& one, const py::object& other) {
    const int found = PyObject_RichCompareBool(one.ptr(), other.ptr(), Py_EQ);
    if (found < 0) throw PythonError{};
    return found == 1;
  }

  std::vector<Entry> remembered_;
  std::vector<py::object> distinct_;
};

// Those that are known, for a list of so many. Where they are many they are forgotten, but not by
// calls that still run: a layout that stood for others there must go on to.
std::shared_ptr<Placements> known_placements(size_t tensors) {
  static auto& known = *new std::shared_ptr<Placements>(new Placements);  // as long as the process
  if (known->are_many()) known = std::make_shared<Placements>();
  std::shared_ptr<Placements> own = known;  // what is let go may let other threads in
  own->shorten(tensors);
  return own;
}

// What lies here of a tensor, and how it is spread over ranks: no mesh for a plain one.
struct Spread {
  py::object tensor, local, spec, mesh, placements;
  bool absent = false;
};

// What kernels see of a local tensor.
struct Seen {
  dlpack::Device device = kUnknown;
  uint32_t dtype = 0;  // its bit; 0 where Python must look
  bool empty = false;
  std::string freed;
};

Seen look_at(PyObject* local) {
  if (!is_plain(local)) return {};  // before view_of throws, which takes a microsecond
  try {
    const TensorView view = view_of(local);
    if (static_cast<int>(view.dtype) >= kFloatDTypes || !view.is_dense()) return {};
    const bool on_host = view.device.type == dlpack::kCUDAHost;
    return {on_host ? dlpack::Device{dlpack::kCPU, 0} : view.device,
            1u << static_cast<int>(view.dtype), view.numel == 0, ""};
  } catch (const NoMemory& error) {
    return {kUnknown, 0, false, error.what()};
  } catch (const Unsupported&) {
    return {};
  }
}

struct Group {
  py::object mesh, placements;
  dlpack::Device device = kUnknown;
  uint32_t dtypes = 0;
  std::vector<int64_t> indices;
  std::vector<py::object> tensors, locals;
  py::list empty, absent;
};

py::list list_of(std::vector<py::object>& objects) {
  py::list list(objects.size());
  Py_ssize_t i = 0;
  for (py::object& object : objects) PyList_SET_ITEM(list.ptr(), i++, object.release().ptr());
  return list;
}

class Sorter {
 public:
  Sorter(bool take_grads, PyObject* dtensor, Placements& known, Py_ssize_t count)
      : take_grads_(take_grads), dtensor_(dtensor), known_(known), count_(count) {}

  void add(PyObject* const* items, Py_ssize_t count) {
    Spread block[kBlock];
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (i + 6 < count) prefetch_pointees(items[i + 6]);
      open(items[i], block[i]);
    }
    for (Spread& spread : block) read_slots(spread);
    for (Py_ssize_t i = 0; i < count; ++i) read_spec(block[i], position_ + i);
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (block[i].tensor) take(block[i]);
      ++position_;
    }
  }

  py::tuple found() {
    py::list rows;
    for (Group& g : groups_) {
      const py::object indices = is_run(g.indices) ? range(g.indices) : py::cast(g.indices);
      rows.append(py::make_tuple(or_none(g.mesh), or_none(g.placements), indices,
                                 list_of(g.tensors), list_of(g.locals), g.empty, g.dtypes,
                                 g.absent));
    }
    return py::make_tuple(rows, freed_, or_none(error_));
  }

 private:
  bool is_dtensor(PyObject* object) const {
    return reinterpret_cast<PyObject*>(Py_TYPE(object)) == dtensor_;
  }

  // The item, or its gradient; nothing where it has none, and no other rank has.
  void open(PyObject* item, Spread& spread) const {
    spread.tensor = take_grads_ ? checked(grad_of(item)) : py::reinterpret_borrow<py::object>(item);
    if (!take_grads_ || !spread.tensor.is_none()) return;
    spread.absent =
        is_dtensor(item) && checked(PyObject_GetAttr(item, names().requires_grad)).ptr() == Py_True;
    spread.tensor = spread.absent ? py::reinterpret_borrow<py::object>(item) : py::object();
  }

  void read_slots(Spread& spread) const {
    if (!spread.tensor) return;
    if (is_dtensor(spread.tensor.ptr())) {
      spread.local = checked(PyObject_GetAttr(spread.tensor.ptr(), names().local_tensor));
      spread.spec = checked(PyObject_GetAttr(spread.tensor.ptr(), names().spec));
      __builtin_prefetch(spread.spec.ptr());
      __builtin_prefetch(reinterpret_cast<const char*>(spread.spec.ptr()) - 32);  // its values
    } else {
      spread.local = spread.tensor;
    }
    __builtin_prefetch(spread.local.ptr());
  }

  void read_spec(Spread& spread, size_t place) {
    if (!spread.tensor) return;
    prefetch_pointees(spread.local.ptr());
    if (!spread.spec) return;
    spread.mesh = checked(PyObject_GetAttr(spread.spec.ptr(), names().mesh));
    const py::object placements = checked(PyObject_GetAttr(spread.spec.ptr(), names().placements));
    spread.placements = known_.canonical(placements, place, likely_);
    likely_ = spread.placements;
  }

  void take(Spread& spread) {
    Seen seen = look_at(spread.local.ptr());
    Group& group = at(spread, seen.device);
    if (spread.absent) {
      group.absent.append(spread.tensor);
      return;
    }
    if (!seen.freed.empty()) {
      freed_.append(index_);
      if (!error_) {
        error_ = py::str("tensor " + std::to_string(position_) + " of the list " + seen.freed);
      }
    }
    if (seen.empty) group.empty.append(group.locals.size());
    group.dtypes |= seen.dtype;
    group.indices.push_back(index_++);
    group.tensors.push_back(std::move(spread.tensor));
    group.locals.push_back(std::move(spread.local));
  }

  // The group of this device and layout: mostly that of the tensor before.
  Group& at(const Spread& spread, dlpack::Device device) {
    if (!groups_.empty() && is_of(groups_[last_], spread, device)) return groups_[last_];
    std::vector<size_t>& rows = by_mesh_[spread.mesh.ptr()];
    for (size_t i : rows) {
      if (is_of(groups_[i], spread, device)) return groups_[last_ = i];
    }
    last_ = groups_.size();
    rows.push_back(last_);
    Group& group = groups_.emplace_back();
    group.mesh = spread.mesh;
    group.placements = spread.placements;
    group.device = device;
    if (last_ == 0) {  // a model is mostly one group
      group.indices.reserve(count_);
      group.tensors.reserve(count_);
      group.locals.reserve(count_);
    }
    return group;
  }

  static bool is_of(const Group& group, const Spread& spread, dlpack::Device device) {
    return group.mesh.ptr() == spread.mesh.ptr() && group.placements.is(spread.placements) &&
           group.device.type == device.type && group.device.id == device.id;
  }

  static bool is_run(const std::vector<int64_t>& indices) {
    return indices.empty() ||
           indices.back() - indices.front() + 1 == static_cast<int64_t>(indices.size());
  }

  static py::object range(const std::vector<int64_t>& indices) {
    const py::object type =
        py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyRange_Type));
    if (indices.empty()) return type(0);
    return type(indices.front(), indices.back() + 1);
  }

  const bool take_grads_;
  PyObject* const dtensor_;
  Placements& known_;
  const Py_ssize_t count_;
  std::vector<Group> groups_;
  std::unordered_map<PyObject*, std::vector<size_t>> by_mesh_;  // a model may have many of each
  size_t last_ = 0;
  py::object likely_;
  int64_t index_ = 0, position_ = 0;
  py::list freed_;
  py::object error_;
};

}  // namespace

py::tuple sort_tensors(py::handle tensors, bool take_grads, py::handle dtensor) {
  const py::object items = checked(PySequence_Tuple(tensors.ptr()));  // others may change a list
  const Py_ssize_t count = PyTuple_GET_SIZE(items.ptr());
  const CriticalSection alone(names().placements);
  const std::shared_ptr<Placements> known = known_placements(static_cast<size_t>(count));
  Sorter sorter(take_grads, dtensor.ptr(), *known, count);
  PyObject* const* all = &PyTuple_GET_ITEM(items.ptr(), 0);
  for (Py_ssize_t i = 0; i < count; i += kBlock) sorter.add(all + i, std::min(kBlock, count - i));
  return sorter.found();
}

}  // namespace fastclip
