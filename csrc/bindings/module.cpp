#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arguments.h"
#include "bindings/clip_value.h"
#include "bindings/grad_norm/cuda.h"
#include "bindings/grad_norm/grad_norm.h"
#include "bindings/grad_norm/sorting.h"
#include "bindings/threads.h"
#include "bindings/unit_clip.h"
#include "cpu/vector/isa.h"
#include "tensors/python.h"
#include "tensors/tensor_list.h"
#include "tensors/tensor_view.h"
#include "tensors/version.h"
#include "threads/count.h"

namespace py = pybind11;
using fastclip::TensorList;

namespace fastclip {
void bind_structure_loss(py::module_& m);  // structure_loss.cpp
}

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "fastclip's compiled kernels. Private: use the functions of the fastclip package.";
  // What is found out once is found out now: a child that is forked meanwhile would wait for it.
  fastclip::cpu::best_isa();
  fastclip::max_threads();
  fastclip::names();
  py::register_local_exception<fastclip::Unsupported>(m, "Unsupported", PyExc_NotImplementedError);
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const fastclip::PythonError&) {  // already set
    }
  });
  py::class_<TensorList>(m, "TensorList", py::module_local())
      .def(py::init([](py::handle tensors, bool take_grads) {
             return std::make_unique<TensorList>(tensors.ptr(), take_grads);
           }),
           py::arg("tensors"), py::arg("take_grads"))
      .def("__len__", [](const TensorList& list) { return list.tensors().size(); })
      .def_property_readonly("dtypes", &TensorList::dtypes)
      .def("has_norm", &TensorList::has_norm)
      .def_property_readonly("device", &fastclip::device_of)
      .def("addresses", &fastclip::addresses_of)
      .def_property_readonly("tensors", &fastclip::tensors_of);
  m.def("bind_torch", [](py::handle tensor, py::handle parameter, py::handle increment_version,
                         py::list inference, py::list normal) {
    fastclip::bind_torch(tensor.ptr(), parameter.ptr());
    fastclip::bind_versions(tensor.ptr(), increment_version.ptr(), inference.ptr(), normal.ptr());
  });
  m.def("bind_threads", &fastclip::bind_threads);
  m.def("thread_limits", &fastclip::thread_limits_of, py::arg("root") = "");
  m.def("require_memory", [](py::handle tensors, bool take_grads) {
    fastclip::require_memory(tensors.ptr(), take_grads);
  });
  m.def("sort_tensors", &fastclip::sort_tensors);
  m.def("build_info", &fastclip::build_info);
  m.def("cuda_why_not", &fastclip::cuda_why_not);
  m.def("cuda_work_size", &fastclip::cuda_work_size);
  m.def("cuda_grad_norm", &fastclip::cuda_grad_norm);
  m.def("cuda_scale_grads", &fastclip::cuda_scale_grads);
  m.def("cuda_multiply", &fastclip::cuda_multiply);
  m.def("cuda_scale_each", &fastclip::cuda_scale_each);
  m.def("cuda_clamp", &fastclip::cuda_clamp);
  m.def("grad_norm", &fastclip::grad_norm);
  m.def("grad_norms", &fastclip::grad_norms, py::arg("tensors"), py::arg("orders"),
        py::arg("norms"), py::arg("stats") = py::none());
  m.def("scale_grads", &fastclip::scale_grads);
  m.def("scale_each", &fastclip::scale_each);
  m.def("clip_grads", &fastclip::clip_grads);
  m.def("clip_values", &fastclip::clip_values, py::arg("tensors"), py::arg("limit"),
        py::arg("take_grads") = true);
  m.def("clip_units", &fastclip::clip_units, py::arg("parameters"), py::arg("clipping"),
        py::arg("eps"), py::arg("grads") = py::none(), py::arg("check") = py::none());
  m.def("cuda_clip_units", &fastclip::cuda_clip_units);
  fastclip::bind_structure_loss(m);
}
