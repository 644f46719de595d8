#include "kernels/device/cuda_device.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>

#include "kernels/base/check.h"
#include "kernels/base/clock.h"
#include "kernels/device/cuda_spans.h"

namespace stoker {

namespace {

// The one place that turns CUDA's answers into ours. CUDA remembers the last error; asking takes it back.
Status checked(cudaError_t error, const std::string& device, const char* what) {
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  return Status::failure(fmt::format("{}: {}: {}", device, what, cudaGetErrorString(error)));
}

void require(cudaError_t error, const std::string& device, const char* what) {
  Status status = checked(error, device, what);
  if (!status.ok()) throw Error(status.message());
}

// Pinned memory belongs to the process, so logical devices and cards share one registration.
class PinnedRanges {
 public:
  Status add(void* begin, i64 bytes, bool mapped, const std::string& device) {
    std::lock_guard lock(mutex_);
    i64& users = users_[begin];
    if (users == 0) {
      unsigned flags = cudaHostRegisterPortable | (mapped ? cudaHostRegisterMapped : 0u);
      Status status = checked(cudaHostRegister(begin, static_cast<size_t>(bytes), flags), device, "pinning host memory");
      if (!status.ok()) {
        users_.erase(begin);
        return status;
      }
    }
    users++;
    return {};
  }
  void remove(void* begin) {
    std::lock_guard lock(mutex_);
    auto found = users_.find(begin);
    if (found == users_.end() || --found->second > 0) return;
    users_.erase(found);
    cudaHostUnregister(begin);
  }

 private:
  std::mutex mutex_;
  std::map<void*, i64> users_;
};

PinnedRanges& pinned_ranges() {
  static PinnedRanges ranges;
  return ranges;
}

// What the streams and events of a device share with it.
struct Card {
  int ordinal;
  std::string id;
  CudaClock clock = {};
  std::atomic<bool> lost{false};

  // CUDA keeps a current card per thread. Costs nothing when it is this one already. That a lost card cannot be selected is
  // told by what follows; remembered, it would be taken for a failure of the card that comes next.
  void select() const {
    if (cudaSetDevice(ordinal) != cudaSuccess) cudaGetLastError();
  }
  // A failure on the token path: CUDA's asynchronous errors spoil the whole context.
  Status check(cudaError_t error, const char* what) {
    Status status = checked(error, id, what);
    if (!status.ok()) lost.store(true);
    return status;
  }
};

class CudaEvent final : public DeviceEvent {
 public:
  explicit CudaEvent(Card& card) : card_(card) {
    card_.select();
    require(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), card_.id, "making an event");
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }

  bool done() override {
    card_.select();
    return ask_event(event_) != cudaErrorNotReady;  // wait() says how it went
  }
  Status wait() override {
    card_.select();
    return card_.check(cudaEventSynchronize(event_), "waiting for the card");
  }
  cudaEvent_t native() const { return event_; }

 private:
  Card& card_;
  cudaEvent_t event_ = nullptr;
};

class CudaStream final : public DeviceStream {
 public:
  explicit CudaStream(Card& card) : card_(card) {
    card_.select();
    require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), card_.id, "making a stream");
    native_ = {stream_, card_.ordinal};
    spans_ = std::make_unique<CudaSpans>(card_.clock, stream_);
  }
  ~CudaStream() override {
    card_.select();
    cudaStreamSynchronize(stream_);
    spans_.reset();
    cudaStreamDestroy(stream_);
  }

  Status copy_to_device(DevicePtr to, const void* from, i64 bytes) override {
    return copy(to.as<void>(), from, bytes, cudaMemcpyHostToDevice, "a copy to the card");
  }
  Status copy_to_host(void* to, DevicePtr from, i64 bytes) override {
    return copy(to, from.as<void>(), bytes, cudaMemcpyDeviceToHost, "a copy from the card");
  }
  Status copy_within(DevicePtr to, DevicePtr from, i64 bytes) override {
    return copy(to.as<void>(), from.as<void>(), bytes, cudaMemcpyDeviceToDevice, "a copy within the card");
  }
  Status record(DeviceEvent& event) override {
    card_.select();
    Status launched = check_launches();
    if (!launched.ok()) return launched;
    spans_->end();
    labelled_ = false;
    return card_.check(cudaEventRecord(static_cast<CudaEvent&>(event).native(), stream_), "recording an event");
  }
  Status wait(DeviceEvent& event) override {
    card_.select();
    return card_.check(cudaStreamWaitEvent(stream_, static_cast<CudaEvent&>(event).native(), 0), "waiting for an event");
  }
  Status synchronize() override {
    card_.select();
    Status launched = check_launches(), ended = card_.check(cudaStreamSynchronize(stream_), "waiting for the card");
    return launched.ok() ? ended : launched;
  }
  bool busy() override {
    card_.select();
    return ask_stream(stream_) == cudaErrorNotReady;  // synchronize() says how it went
  }
  void label(const char* what) override {
    card_.select();
    spans_->begin(what, card_.clock.lane);
    labelled_ = true;
  }
  const void* native() const override { return &native_; }

 private:
  // Of kernels since the last time: a launch says nothing itself.
  Status check_launches() {
    cudaError_t error = cudaGetLastError();
    return card_.check(error, error == cudaErrorNoKernelImageForDevice
                                  ? "launching a kernel, of which this build has none for the card (-Dgpu_archs)"
                                  : "launching a kernel");
  }
  Status copy(void* to, const void* from, i64 bytes, cudaMemcpyKind kind, const char* what) {
    card_.select();
    // Within a span that has a name it is part of that.
    if (!labelled_ && kind != cudaMemcpyDeviceToDevice)
      spans_->begin("copy", kind == cudaMemcpyHostToDevice ? card_.clock.up : card_.clock.down);
    Status status = card_.check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream_), what);
    if (!labelled_) spans_->end();
    return status;
  }

  Card& card_;
  cudaStream_t stream_ = nullptr;
  CudaStreamOfCard native_{};
  std::unique_ptr<CudaSpans> spans_;
  bool labelled_ = false;  // a span with a name has begun
};

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, const std::string& id) : card_{.ordinal = ordinal, .id = id} {
    require(cudaSetDevice(ordinal), id, "opening the card");
    require(cudaFree(nullptr), id, "opening the card");  // makes the context now, where a failure can be told
    cudaDeviceProp p{};
    require(cudaGetDeviceProperties(&p, ordinal), id, "asking for its properties");
    properties_ = {.id = id,
                   .name = p.name,
                   .total_bytes = static_cast<i64>(p.totalGlobalMem),
                   .compute_major = p.major,
                   .compute_minor = p.minor,
                   .packed = true};
  }

  ~CudaDevice() override {
    card_.select();
    if (card_.clock.zero != nullptr) cudaEventDestroy(card_.clock.zero);
  }

  void record(Timeline& timeline) override {
    card_.select();
    CudaClock& clock = card_.clock;
    require(cudaEventCreate(&clock.zero), card_.id, "making an event");
    require(cudaEventRecord(clock.zero), card_.id, "recording an event");
    require(cudaEventSynchronize(clock.zero), card_.id, "waiting for the card");
    clock.zero_ns = steady_clock().now_ns();
    clock.timeline = &timeline;
    clock.lane = timeline.lane(card_.id);
    clock.up = timeline.lane(card_.id + " up");
    clock.down = timeline.lane(card_.id + " down");
  }

  DeviceKind kind() const override { return DeviceKind::cuda; }

  // Also of a lost card, which messages name: it has nothing free.
  DeviceProperties properties() const override {
    card_.select();
    DeviceProperties now = properties_;
    size_t free_bytes = 0, total_bytes = 0;
    if (cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess)
      now.free_bytes = static_cast<i64>(free_bytes);
    else
      cudaGetLastError();
    return now;
  }

  Status status() const override {
    return card_.lost.load() ? Status::failure(fmt::format("{}: the card is lost after an error", card_.id)) : Status();
  }

  Status allocate(i64 bytes, const char* what, DevicePtr& memory) override {
    card_.select();
    void* p = nullptr;
    cudaError_t error = cudaMalloc(&p, static_cast<size_t>(bytes));
    memory = {reinterpret_cast<u64>(p)};
    if (error != cudaErrorMemoryAllocation) return card_.check(error, "allocating memory");
    cudaGetLastError();
    memory = {};
    return Status::failure(fmt::format("{}: no {:.1f} MiB left for {}; a smaller --vram needs less", card_.id,
                                       static_cast<f64>(bytes) / kMiB, what));
  }
  void free(DevicePtr memory) override {
    card_.select();
    cudaFree(memory.as<void>());
  }

  std::unique_ptr<DeviceStream> make_stream() override { return std::make_unique<CudaStream>(card_); }
  std::unique_ptr<DeviceEvent> make_event() override { return std::make_unique<CudaEvent>(card_); }

  Status pin_host(void* begin, i64 bytes, bool mapped) override {
    card_.select();
    return pinned_ranges().add(begin, bytes, mapped, card_.id);
  }
  void unpin_host(void* begin) override {
    card_.select();
    pinned_ranges().remove(begin);
  }
  DevicePtr mapped_address(const void* host) const override {
    card_.select();
    void* p = nullptr;
    CHECK(cudaHostGetDevicePointer(&p, const_cast<void*>(host), 0) == cudaSuccess);
    return {reinterpret_cast<u64>(p)};
  }

  bool has_peer_access(const Device& other) const override {
    if (other.kind() != DeviceKind::cuda) return false;
    int peer = static_cast<const CudaDevice&>(other).card_.ordinal;
    if (peer == card_.ordinal) return true;
    int can = 0;
    return cudaDeviceCanAccessPeer(&can, card_.ordinal, peer) == cudaSuccess && can != 0;
  }
  Status copy_from_peer(DeviceStream& stream, DevicePtr to, Device& other, DevicePtr from, i64 bytes) override {
    card_.select();
    int peer = static_cast<const CudaDevice&>(other).card_.ordinal;
    enable_peer(peer, other);
    // CUDA goes through the host's memory by itself where there is no link between the two.
    return card_.check(cudaMemcpyPeerAsync(to.as<void>(), card_.ordinal, from.as<void>(), peer, static_cast<size_t>(bytes),
                                           static_cast<const CudaStreamOfCard*>(stream.native())->stream),
                       "a copy from another card");
  }

 private:
  // Direct copies must be asked for, once for a process: another logical device on this card may have done it.
  void enable_peer(int peer, const Device& other) {
    if (peer == card_.ordinal || !peers_.insert(peer).second || !has_peer_access(other)) return;
    if (cudaDeviceEnablePeerAccess(peer, 0) != cudaSuccess) cudaGetLastError();
  }

  mutable Card card_;
  DeviceProperties properties_;  // but for what is free
  std::set<int> peers_;          // that have been asked for
};

CudaPresence look_for_cards() {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (error == cudaSuccess && count > 0) return {count, ""};
  if (error == cudaSuccess || error == cudaErrorNoDevice) return {0, "the CUDA driver sees no card"};
  if (error == cudaErrorInsufficientDriver) return {0, "no CUDA driver, or one too old for this build"};
  return {0, cudaGetErrorString(error)};
}

}  // namespace

const CudaPresence& cuda_presence() {
  static const CudaPresence presence = look_for_cards();
  return presence;
}

std::unique_ptr<Device> open_cuda_device(int ordinal, const std::string& id) {
  const CudaPresence& presence = cuda_presence();
  if (presence.cards == 0) fail("--device cuda:{}: {}; --device cpu needs no card", ordinal, presence.why_none);
  if (ordinal >= presence.cards) fail("--device cuda:{}: there are only {} cards, counted from 0", ordinal, presence.cards);
  return std::make_unique<CudaDevice>(ordinal, id);
}

}  // namespace stoker
