// What runs on the device: copies and views of its own, the CPU's kernels over its memory otherwise.
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/List.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <unordered_set>

#include "device.h"

namespace fake_npu {
namespace {

void check_dtype(at::ScalarType dtype) {
  if (!is_strict()) return;
  TORCH_CHECK(!at::isComplexType(dtype), "an NPU has no complex numbers: dtype ", dtype);
  TORCH_CHECK(dtype != at::kDouble, "an NPU has no 64-bit floating point numbers: dtype ", dtype);
  TORCH_CHECK(dtype != at::kBFloat16 || has_bf16(), "this NPU has no bf16: dtype ", dtype);
}

bool is_npu(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kNpu; }

// Arguments and results of one call on their way between the device and the CPU's kernel.
class HostCall {
 public:
  HostCall(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), schema_(op.schema()), stack_(stack) {}

  void run() {
    auto first = stack_->size() - schema_.arguments().size();
    given_.assign(stack_->begin() + first, stack_->end());
    for (size_t i = 0; i < given_.size(); ++i) {
      const auto& argument = schema_.arguments()[i];
      bool is_written = argument.alias_info() && argument.alias_info()->isWrite();
      (*stack_)[first + i] = to_host(given_[i], *argument.real_type(), is_written);
    }
    check_hosts();
    {
      c10::DeviceGuard guard(c10::Device(kNpu, device_));
      op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
      write_back();
      to_device();
    }
  }

 private:
  struct Pair {
    at::Tensor device, host;
    bool is_written;
  };

  c10::IValue to_host(const c10::IValue& value, const c10::Type& type, bool is_written) {
    if (value.isTensor()) return host_of(value.toTensor(), is_written);
    if (value.isTensorList()) {
      c10::List<at::Tensor> hosts;
      for (const at::Tensor& one : value.toTensorVector()) hosts.push_back(host_of(one, is_written));
      return hosts;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> hosts;
      for (const auto& one : value.toOptionalTensorVector())
        hosts.push_back(one ? std::optional(host_of(*one, is_written)) : one);
      return hosts;
    }
    if (value.isDevice() && value.toDevice().type() == kNpu) return c10::Device(c10::kCPU);
    if (value.isGenerator()) return host_generator(value.toGenerator());
    if (value.isNone() && type.str() == "Generator?") return host_generator(std::nullopt);
    return value;
  }

  at::Tensor host_of(const at::Tensor& tensor, bool is_written) {
    if (!is_npu(tensor)) {
      if (tensor.defined() && tensor.dim() > 0) has_host_tensor_ = true;
      return tensor;
    }
    if (pairs_.empty()) device_ = tensor.device().index();
    // What is to be filled has to be a tensor that may grow.
    bool grows = is_written && tensor.numel() == 0;
    auto host = grows ? at::empty_like(tensor, tensor.options().device(c10::kCPU)) : on_host(tensor);
    pairs_.push_back({tensor, host, is_written});
    return host;
  }

  // Kernels that read indices or counters from the host do so on a real device too.
  void check_hosts() const {
    static const std::unordered_set<std::string> mixed{
        "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"};
    auto name = c10::toString(schema_.operator_name());
    TORCH_CHECK(!has_host_tensor_ || pairs_.empty() || !is_strict() || mixed.count(name),
                "Expected all tensors to be on the same device, but ", name,
                " was given some on the CPU and some on npu:", int(device_));
  }

  void write_back() {
    for (auto& pair : pairs_) {
      if (!pair.is_written) continue;
      if (pair.device.sizes() == pair.host.sizes() &&
          pair.device.const_data_ptr() == pair.host.const_data_ptr())
        continue;
      if (pair.device.sizes() != pair.host.sizes()) pair.device.resize_(pair.host.sizes());
      on_host(pair.device).copy_(pair.host);
    }
  }

  void to_device() {
    auto first = stack_->size() - schema_.returns().size();
    for (size_t i = 0; i < schema_.returns().size(); ++i) {
      auto& value = (*stack_)[first + i];
      const auto* alias = schema_.returns()[i].alias_info();
      if (alias && alias->isWrite()) {
        value = argument_of(*alias);
      } else if (value.isTensor()) {
        value = device_of(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<at::Tensor> moved;
        for (const at::Tensor& one : value.toTensorVector()) moved.push_back(device_of(one));
        value = moved;
      }
    }
  }

  c10::IValue argument_of(const c10::AliasInfo& alias) const {
    for (size_t i = 0; i < given_.size(); ++i) {
      const auto* own = schema_.arguments()[i].alias_info();
      if (own && *own == alias) return given_[i];
    }
    TORCH_CHECK(false, schema_, " writes to a result that is none of its arguments");
  }

  at::Tensor device_of(const at::Tensor& result) const {
    if (!result.defined() || pairs_.empty()) return result;
    for (const auto& pair : pairs_) {
      if (!result.storage().is_alias_of(pair.host.storage()) || result.numel() == 0) continue;
      auto offset = result.storage_offset() + pair.device.storage_offset();
      return pair.device.as_strided(result.sizes(), result.strides(), offset);
    }
    return on_device(result, device_);
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  std::vector<c10::IValue> given_;
  std::vector<Pair> pairs_;
  c10::DeviceIndex device_ = current_device();
  bool has_host_tensor_ = false;
};

// Results whose size depends on values, or values that decide what the host does next.
bool waits_for_values(const std::string& name, const torch::jit::Stack& arguments) {
  static const std::unordered_set<std::string> always{
      "aten::nonzero",       "aten::masked_select",   "aten::_unique",
      "aten::_unique2",      "aten::unique_dim",      "aten::unique_consecutive",
      "aten::equal",         "aten::bincount",        "aten::repeat_interleave.Tensor",
      "aten::nonzero.out",   "aten::masked_select.out"};
  if (always.count(name)) return true;
  // To read through a mask is to call `nonzero` first; to write through one is not.
  if (name.find("index_put") == std::string::npos) return false;
  for (const auto& value : arguments) {
    if (!value.isOptionalTensorList()) continue;
    for (const auto& one : value.toOptionalTensorVector())
      if (one && one->defined() && (one->scalar_type() == at::kBool || one->scalar_type() == at::kByte))
        return true;
  }
  return false;
}

void refuse_foreign_kernels(const std::string& name) {
  if (!is_strict()) return;
  for (const char* kind : {"flash_attention", "efficient_attention", "cudnn", "_flash_", "triton"})
    TORCH_CHECK(name.find(kind) == std::string::npos, name, " is a kernel that no NPU has");
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  auto name = c10::toString(op.schema().operator_name());
  refuse_foreign_kernels(name);
  record_operator(name);
  auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  if (waits_for_values(name, arguments.vec())) count_synchronization("operator");
  HostCall(op, stack).run();
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  auto type = c10::dtype_or_default(dtype);
  check_dtype(type);
  c10::DeviceGuard guard(c10::device_or_default(device));
  auto keys = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, allocator(), keys, type, format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  auto type = c10::dtype_or_default(dtype);
  check_dtype(type);
  c10::DeviceGuard guard(c10::device_or_default(device));
  auto keys = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, allocator(), keys, type);
}

// The host waits for a copy from the device unless it may finish later, in pinned memory; and for
// one to the device unless it is told not to.
void move(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (is_npu(from) && !is_npu(to)) {
    bool may_wait = non_blocking && is_pinned(to.const_data_ptr());
    if (may_wait && to.is_contiguous() && to.sizes() == from.sizes()) return copy_later(to, from);
    if (!may_wait) count_synchronization("device_to_host");
  } else if (is_npu(to) && !is_npu(from)) {
    finish_copies();  // in the order of the stream
    if (!non_blocking) count_synchronization("host_to_device");
  }
  on_host(to).copy_(on_host(from));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  record_operator("aten::copy_");
  move(self, source, non_blocking);
  return self;
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& to, bool non_blocking) {
  move(to, source, non_blocking);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& to) {
  if (to.sizes() != source.sizes()) to.resize_(source.sizes());
  return copy_from(source, to, false);
}

at::Scalar item(const at::Tensor& tensor) {
  record_operator("aten::_local_scalar_dense");
  count_synchronization("item");
  return on_host(tensor).item();
}

const at::Tensor& resize_(const at::Tensor& tensor, at::IntArrayRef size,
                          std::optional<at::MemoryFormat> format) {
  return at::native::resize_(tensor, size, format);
}

at::Tensor& set_part(at::Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size,
                     at::IntArrayRef stride) {
  return at::cpu::set_(self, storage, offset, size, stride);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage) {
  int64_t elements = storage.nbytes() / self.dtype().itemsize();
  return at::cpu::set_(self, storage, 0, {elements}, {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_part(self, source.storage(), source.storage_offset(), source.sizes(),
                  source.strides());
}

void record_stream(at::Tensor&, at::Stream) {}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  record_operator("aten::convolution_overrideable");
  std::optional<at::Tensor> host_bias;
  if (bias && bias->defined()) host_bias = on_host(*bias);
  auto out = at::convolution(on_host(x), on_host(weight), host_bias, stride, padding, dilation,
                             transposed, output_padding, groups);
  return on_device(out, x.device().index());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  record_operator("aten::convolution_backward_overrideable");
  at::IntArrayRef bias_size{weight.size(transposed ? 1 : 0)};
  std::vector<int64_t> bias_sizes(bias_size.begin(), bias_size.end());
  auto [dx, dw, db] = at::convolution_backward(on_host(grad), on_host(x), on_host(weight),
                                               bias_sizes, stride, padding, dilation, transposed,
                                               output_padding, groups, wanted);
  auto device = x.device().index();
  return {on_device(dx, device), on_device(dw, device), on_device(db, device)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", resize_);
  m.impl("copy_", copy_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("record_stream", record_stream);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

#define LOWER_PRECISION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL_PRECISION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FULL_UNLESS_ASKED(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER_PRECISION)
  AT_FORALL_FP32(FULL_PRECISION)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_UNLESS_ASKED)
  AT_FORALL_PROMOTE(WIDEST)
}

}  // namespace
}  // namespace fake_npu
