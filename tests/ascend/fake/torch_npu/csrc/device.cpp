// The device itself: host memory with a limit, streams that are always done, generators, hooks.
#include "device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace fake_npu {
namespace {

int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::atoll(text) : otherwise;
}

thread_local c10::DeviceIndex selected = 0;
thread_local std::array<c10::StreamId, kMaxDevices> streams{};
const pid_t owner = getpid();

void require_own_process() {
  TORCH_CHECK(getpid() == owner,
              "Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, "
              "you must use the 'spawn' start method");
}

std::mutex memory_lock;
std::array<MemoryUse, kMaxDevices> uses{};
int64_t limit = setting("FAKE_NPU_BYTES", int64_t{64} << 30);
std::map<const char*, size_t> pinned;

struct Block {
  void* start;
  int64_t bytes;
  int device;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  {
    std::lock_guard<std::mutex> guard(memory_lock);
    uses[block->device].allocated -= block->bytes;
  }
  std::free(block->start);
  delete block;
}

void reserve(int device, int64_t bytes) {
  std::lock_guard<std::mutex> guard(memory_lock);
  auto& use = uses[device];
  if (use.allocated + bytes > limit) {
    use.reserved = use.allocated;  // the real allocator gives its cache back before it gives up
    TORCH_CHECK_WITH(OutOfMemoryError, false, "NPU out of memory. Tried to allocate ", bytes,
                     " bytes (NPU ", device, "; ", limit, " bytes total capacity; ", use.allocated,
                     " bytes already allocated; ", limit - use.allocated, " bytes free)");
  }
  use.allocated += bytes;
  use.reserved = std::max(use.reserved, use.allocated);
  use.peak_allocated = std::max(use.peak_allocated, use.allocated);
  use.peak_reserved = std::max(use.peak_reserved, use.reserved);
}

struct Allocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t requested) override {
    require_own_process();
    int device = selected;
    if (requested == 0) return {nullptr, c10::Device(kNpu, device)};
    int64_t bytes = (static_cast<int64_t>(requested) + 511) / 512 * 512;
    reserve(device, bytes);
    auto* block = new Block{nullptr, bytes, device};
    c10::DataPtr owned(nullptr, block, &release, c10::Device(kNpu, device));
    TORCH_CHECK(posix_memalign(&block->start, 512, bytes) == 0, "the host has no memory left");
    return {block->start, owned.release_context(), &release, c10::Device(kNpu, device)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    for (int device = 0; device < device_count(); ++device) empty_cache(device);
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    auto use = memory_use(device);
    for (auto* of : {&stats.allocated_bytes, &stats.active_bytes, &stats.requested_bytes}) {
      (*of)[0].current = use.allocated;
      (*of)[0].peak = use.peak_allocated;
    }
    stats.reserved_bytes[0].current = use.reserved;
    stats.reserved_bytes[0].peak = use.peak_reserved;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override { reset_peaks(device); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    auto use = memory_use(device);
    return {use.total - use.reserved, use.total};
  }
};

Allocator device_memory;
REGISTER_ALLOCATOR(kNpu, &device_memory);

void unpin(void* start) {
  {
    std::lock_guard<std::mutex> guard(memory_lock);
    pinned.erase(static_cast<const char*>(start));
  }
  std::free(start);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::kCPU};
    void* start = nullptr;
    TORCH_CHECK(posix_memalign(&start, 512, bytes) == 0, "the host has no memory left to pin");
    std::lock_guard<std::mutex> guard(memory_lock);
    pinned[static_cast<const char*>(start)] = bytes;
    return {start, start, &unpin, c10::kCPU};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

PinnedAllocator pinned_memory;

using Clock = std::chrono::steady_clock;

// Work is done when it is submitted, so that every stream is idle; events keep the time.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kNpu; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kNpu, selected}; }
  void setDevice(c10::Device device) const override {
    if (device.has_index()) set_device(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) selected = device.index();
  }
  c10::Device indexed(c10::Device device) const {
    return {kNpu, device.has_index() ? device.index() : selected};
  }
  c10::Stream getStream(c10::Device device) const override {
    auto full = indexed(device);
    return c10::Stream(c10::Stream::UNSAFE, full, streams[full.index()]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, indexed(device));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    static std::atomic<c10::StreamId> next{1};
    return c10::Stream(c10::Stream::UNSAFE, indexed(device), next++);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto before = getStream(stream.device());
    streams[stream.device_index()] = stream.id();
    return before;
  }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    if (*event == nullptr) *event = new Clock::time_point;
    *static_cast<Clock::time_point*>(*event) = Clock::now();
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<Clock::time_point*>(event);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    finish_copies();
    return true;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }
  bool queryStream(const c10::Stream&) const override {
    finish_copies();
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override { count_synchronization("wait"); }
  void synchronizeEvent(void*) const override { count_synchronization("wait"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { count_synchronization("wait"); }
  double elapsedTime(void* begin, void* end, const c10::DeviceIndex) const override {
    auto took = *static_cast<Clock::time_point*>(end) - *static_cast<Clock::time_point*>(begin);
    return std::chrono::duration<double, std::milli>(took).count();
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// Draws the CPU's numbers for the same seed, from a state of its own.
struct NpuGenerator final : c10::GeneratorImpl {
  at::Generator host;

  explicit NpuGenerator(c10::DeviceIndex device, at::Generator inner)
      : GeneratorImpl({kNpu, device}, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        host(std::move(inner)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  GeneratorImpl* clone_impl() const override { return new NpuGenerator(device_.index(), host.clone()); }
};

at::Generator new_generator(c10::DeviceIndex device) {
  return at::make_generator<NpuGenerator>(device, at::detail::createCPUGenerator());
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return device_count(); }
  c10::DeviceIndex getCurrentDevice() const override { return selected; }
  void setCurrentDevice(c10::DeviceIndex device) const override { set_device(device); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    auto before = selected;
    set_device(device);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return device < 0 ? selected : exchangeDevice(device);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    static std::vector<at::Generator> own = [] {
      std::vector<at::Generator> made;
      for (int index = 0; index < kMaxDevices; ++index) made.push_back(new_generator(index));
      return made;
    }();
    return own.at(device < 0 ? selected : device);
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return new_generator(device < 0 ? selected : device);
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  bool isPinnedPtr(const void* pointer) const override { return is_pinned(pointer); }
  at::Device getDeviceFromPtr(void*) const override { return {kNpu, selected}; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DeviceGuard guard(storage.device());
    auto fresh = device_memory.allocate(bytes);
    if (size_t kept = std::min(bytes, storage.nbytes()))
      std::memcpy(fresh.get(), storage.data(), kept);
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

std::mutex record_lock;
std::set<std::string> operators;
std::map<std::string, int64_t> waits;

struct LaterCopy {
  at::Tensor to, from;
};
std::mutex copies_lock;
auto* later_copies = new std::vector<LaterCopy>;  // outlives what the process ends with

void append_line(const char* path, const std::string& line) {
  int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);
  TORCH_CHECK(file >= 0, "cannot write the operators that ran to ", path);
  auto text = line + "\n";
  auto written = write(file, text.data(), text.size());
  close(file);
  TORCH_CHECK(written == static_cast<ssize_t>(text.size()), "cannot write to ", path);
}

}  // namespace

int device_count() {
  static const int count = static_cast<int>(setting("FAKE_NPU_COUNT", 1));
  TORCH_CHECK(0 < count && count <= kMaxDevices, "FAKE_NPU_COUNT must be 1 to ", kMaxDevices);
  return count;
}
c10::DeviceIndex current_device() { return selected; }
void set_device(c10::DeviceIndex index) {
  require_own_process();
  TORCH_CHECK(0 <= index && index < device_count(), "invalid device ordinal npu:", int(index));
  selected = index;
}

c10::Allocator* allocator() { return &device_memory; }
MemoryUse memory_use(int device) {
  std::lock_guard<std::mutex> guard(memory_lock);
  auto use = uses.at(device);
  use.total = limit;
  return use;
}
void reset_peaks(int device) {
  std::lock_guard<std::mutex> guard(memory_lock);
  uses.at(device).peak_allocated = uses.at(device).allocated;
  uses.at(device).peak_reserved = uses.at(device).reserved;
}
void empty_cache(int device) {
  std::lock_guard<std::mutex> guard(memory_lock);
  uses.at(device).reserved = uses.at(device).allocated;
}
void limit_memory(int64_t bytes) {
  std::lock_guard<std::mutex> guard(memory_lock);
  limit = bytes;
}
bool is_pinned(const void* pointer) {
  std::lock_guard<std::mutex> guard(memory_lock);
  auto* address = static_cast<const char*>(pointer);
  auto next = pinned.upper_bound(address);
  if (next == pinned.begin()) return false;
  auto block = std::prev(next);
  return address < block->first + block->second;
}

bool is_strict() {
  static const bool strict = setting("FAKE_NPU_STRICT", 1) != 0;
  return strict;
}
bool has_bf16() {
  static const bool supported = setting("FAKE_NPU_BF16", 1) != 0;
  return supported;
}

at::Generator host_generator(const std::optional<at::Generator>& generator) {
  const auto& own = generator.has_value() && generator->defined()
                        ? *generator
                        : at::globalContext().defaultGenerator({kNpu, selected});
  return own.device().type() == kNpu
             ? static_cast<NpuGenerator*>(own.unsafeGetGeneratorImpl())->host
             : own;
}

at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kNpu) return tensor;
  auto keep = [tensor](void*) {};
  return at::from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(),
                       tensor.strides(), keep, tensor.options().device(c10::kCPU));
}
at::Tensor on_device(const at::Tensor& tensor, c10::DeviceIndex device) {
  if (!tensor.defined()) return tensor;
  auto options = tensor.options().device(c10::Device(kNpu, device));
  auto copy = at::empty_strided(tensor.sizes(), tensor.strides(), options);
  on_host(copy).copy_(tensor);
  return copy;
}

void record_operator(const std::string& name) {
  std::lock_guard<std::mutex> guard(record_lock);
  static const char* path = std::getenv("FAKE_NPU_OPS");
  if (operators.insert(name).second && path && *path) append_line(path, name);
}
std::set<std::string> recorded_operators() {
  std::lock_guard<std::mutex> guard(record_lock);
  return operators;
}
void forget_operators() {
  std::lock_guard<std::mutex> guard(record_lock);
  operators.clear();
}

void copy_later(const at::Tensor& to, const at::Tensor& from) {
  auto host = on_host(from).clone();
  int unfinished = to.scalar_type() == at::kBool ? 0 : 0xff;
  std::memset(to.mutable_data_ptr(), unfinished, to.nbytes());
  std::lock_guard<std::mutex> guard(copies_lock);
  later_copies->push_back({to.detach(), host});
}
void finish_copies() {
  std::vector<LaterCopy> due;
  {
    std::lock_guard<std::mutex> guard(copies_lock);
    due.swap(*later_copies);
  }
  for (auto& copy : due) copy.to.copy_(copy.from);
}

void count_synchronization(const char* kind) {
  finish_copies();
  std::lock_guard<std::mutex> guard(record_lock);
  ++waits[kind];
}
std::map<std::string, int64_t> synchronizations() {
  std::lock_guard<std::mutex> guard(record_lock);
  return waits;
}
void forget_synchronizations() {
  std::lock_guard<std::mutex> guard(record_lock);
  waits.clear();
}

void register_hooks() {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
}

}  // namespace fake_npu
