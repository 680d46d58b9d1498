// The process group `hccl`: gloo, over the memory of the device.
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/utils/pybind.h>

#include "device.h"

namespace py = pybind11;

namespace {

using Tensors = std::vector<at::Tensor>;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;

// What is sent has to be on the device: on a card, HCCL moves nothing else.
at::Tensor host(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().type() == fake_npu::kNpu, "hccl was given a tensor on ",
              tensor.device(), "; it takes those on npu");
  return fake_npu::on_host(tensor);
}
Tensors hosts(const Tensors& tensors) {
  Tensors moved;
  for (const auto& tensor : tensors) moved.push_back(host(tensor));
  return moved;
}
std::vector<Tensors> hosts(const std::vector<Tensors>& lists) {
  std::vector<Tensors> moved;
  for (const auto& list : lists) moved.push_back(hosts(list));
  return moved;
}

template <typename Options>
const Options& reducible(const Options& options) {
  TORCH_CHECK(!fake_npu::is_strict() || options.reduceOp != c10d::ReduceOp::AVG,
              "hccl has no ReduceOp.AVG; sum, then divide");
  return options;
}

struct Hccl final : c10d::Backend {
  explicit Hccl(c10::intrusive_ptr<c10d::Backend> gloo)
      : Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)) {}

  const std::string getBackendName() const override { return "hccl"; }
  void setSequenceNumberForGroup() override { gloo_->setSequenceNumberForGroup(); }
  uint64_t getSequenceNumberForGroup() override { return gloo_->getSequenceNumberForGroup(); }

  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    auto moved = hosts(tensors);
    return gloo_->broadcast(moved, options);
  }
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    auto moved = hosts(tensors);
    return gloo_->allreduce(moved, reducible(options));
  }
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const c10d::AllreduceCoalescedOptions& options) override {
    auto moved = hosts(tensors);
    return gloo_->allreduce_coalesced(moved, reducible(options));
  }
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    auto moved = hosts(tensors);
    return gloo_->reduce(moved, reducible(options));
  }
  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                    const c10d::AllgatherOptions& options) override {
    auto to = hosts(outputs);
    auto from = hosts(inputs);
    return gloo_->allgather(to, from, options);
  }
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const c10d::AllgatherOptions& options) override {
    auto to = host(output);
    auto from = host(input);
    return gloo_->_allgather_base(to, from, options);
  }
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override {
    auto to = hosts(outputs);
    auto from = hosts(inputs);
    return gloo_->allgather_into_tensor_coalesced(to, from, options);
  }
  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs,
                 const c10d::GatherOptions& options) override {
    auto to = hosts(outputs);
    auto from = hosts(inputs);
    return gloo_->gather(to, from, options);
  }
  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                  const c10d::ScatterOptions& options) override {
    auto to = hosts(outputs);
    auto from = hosts(inputs);
    return gloo_->scatter(to, from, options);
  }
  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& options) override {
    auto to = hosts(outputs);
    auto from = hosts(inputs);
    return gloo_->reduce_scatter(to, from, reducible(options));
  }
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options) override {
    auto to = host(output);
    auto from = host(input);
    return gloo_->_reduce_scatter_base(to, from, reducible(options));
  }
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    auto to = hosts(outputs);
    auto from = hosts(inputs);
    return gloo_->reduce_scatter_tensor_coalesced(to, from, reducible(options));
  }
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& to_sizes,
                        std::vector<int64_t>& from_sizes,
                        const c10d::AllToAllOptions& options) override {
    auto to = host(output);
    auto from = host(input);
    return gloo_->alltoall_base(to, from, to_sizes, from_sizes, options);
  }
  WorkPtr send(Tensors& tensors, int rank, int tag) override {
    auto moved = hosts(tensors);
    return gloo_->send(moved, rank, tag);
  }
  WorkPtr recv(Tensors& tensors, int rank, int tag) override {
    auto moved = hosts(tensors);
    return gloo_->recv(moved, rank, tag);
  }
  WorkPtr barrier(const c10d::BarrierOptions& options) override { return gloo_->barrier(options); }

 private:
  c10::intrusive_ptr<c10d::Backend> gloo_;
};

}  // namespace

void bind_process_group(py::module_& m) {
  m.def("hccl", [](const c10::intrusive_ptr<c10d::Backend>& gloo) {
    return c10::static_intrusive_pointer_cast<c10d::Backend>(c10::make_intrusive<Hccl>(gloo));
  });
}
