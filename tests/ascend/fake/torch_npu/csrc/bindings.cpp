// What Python sees of the device.
#include <ATen/Context.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "device.h"

namespace py = pybind11;

void bind_process_group(py::module_& m);

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fake_npu;
  m.def("register_hooks", &register_hooks);
  m.def("device_count", &device_count);
  m.def("current_device", [] { return static_cast<int>(current_device()); });
  m.def("set_device", [](int index) { set_device(static_cast<c10::DeviceIndex>(index)); });
  py::class_<MemoryUse>(m, "MemoryUse")
      .def_readonly("allocated", &MemoryUse::allocated)
      .def_readonly("reserved", &MemoryUse::reserved)
      .def_readonly("peak_allocated", &MemoryUse::peak_allocated)
      .def_readonly("peak_reserved", &MemoryUse::peak_reserved)
      .def_readonly("total", &MemoryUse::total);
  m.def("memory_use", &memory_use);
  m.def("reset_peaks", &reset_peaks);
  m.def("empty_cache", &empty_cache);
  m.def("limit_memory", &limit_memory);
  m.def("default_generator", [](int device) {
    return at::globalContext().defaultGenerator(c10::Device(kNpu, device));
  });
  m.def("is_strict", &is_strict);
  m.def("has_bf16", &has_bf16);
  m.def("on_host", &on_host);
  m.def("on_device", [](const at::Tensor& tensor, int device) { return on_device(tensor, device); });
  m.def("record_operator", &record_operator);
  m.def("recorded_operators", &recorded_operators);
  m.def("forget_operators", &forget_operators);
  m.def("synchronizations", &synchronizations);
  m.def("forget_synchronizations", &forget_synchronizations);
  bind_process_group(m);
}
