// What the parts of the fake Ascend device share: its memory, its counters and its settings.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>

namespace fake_npu {

constexpr auto kNpu = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 16;

int device_count();
c10::DeviceIndex current_device();
void set_device(c10::DeviceIndex index);

// Bytes in use, reserved, and the peaks of both since the last reset.
struct MemoryUse {
  int64_t allocated, reserved, peak_allocated, peak_reserved, total;
};
c10::Allocator* allocator();
MemoryUse memory_use(int device);
void reset_peaks(int device);
void empty_cache(int device);
void limit_memory(int64_t bytes);
bool is_pinned(const void* pointer);

// Whether the device refuses what an Ascend card refuses; off only where FAKE_NPU_STRICT is 0.
bool is_strict();
bool has_bf16();

// The generator behind `generator`, which the CPU's kernels accept; the device's own by default.
at::Generator host_generator(const std::optional<at::Generator>& generator);

// A CPU tensor over the same memory; it keeps the device tensor alive.
at::Tensor on_host(const at::Tensor& tensor);
// A copy of a CPU tensor in the memory of `device`.
at::Tensor on_device(const at::Tensor& tensor, c10::DeviceIndex device);

void record_operator(const std::string& name);
std::set<std::string> recorded_operators();
void forget_operators();

// A copy to the host that nobody waits for is made when somebody waits: until then its bytes are
// not what they will be, and who reads them early finds that out.
void copy_later(const at::Tensor& to, const at::Tensor& from);
void finish_copies();

// Counts an occasion on which the host waited for the device, and finishes copies.
void count_synchronization(const char* kind);
std::map<std::string, int64_t> synchronizations();
void forget_synchronizations();

void register_hooks();

}  // namespace fake_npu
