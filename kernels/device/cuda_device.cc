#include "kernels/device/cuda_device.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>

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

  // CUDA keeps a current card per thread. Costs nothing when it is this one already.
  void select() const { cudaSetDevice(ordinal); }
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
    cudaError_t passed = cudaEventQuery(event_);  // wait() says how it went
    if (passed != cudaErrorNotReady) return true;
    cudaGetLastError();  // CUDA remembers even that, and the next record() would take it for a failed launch
    return false;
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
    Status launched = card_.check(cudaGetLastError(), "launching a kernel");  // since the last record
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
    return card_.check(cudaStreamSynchronize(stream_), "waiting for the card");
  }
  void label(const char* what) override {
    card_.select();
    spans_->begin(what, card_.clock.lane);
    labelled_ = true;
  }
  void* native() const override { return stream_; }

 private:
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
  std::unique_ptr<CudaSpans> spans_;
  bool labelled_ = false;  // a span with a name has begun
};

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, const std::string& id) : card_{.ordinal = ordinal, .id = id} {
    require(cudaSetDevice(ordinal), id, "opening the card");
    require(cudaFree(nullptr), id, "opening the card");  // makes the context now, where a failure can be told
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

  DeviceProperties properties() const override {
    card_.select();
    cudaDeviceProp p{};
    require(cudaGetDeviceProperties(&p, card_.ordinal), card_.id, "asking for its properties");
    size_t free_bytes = 0, total_bytes = 0;
    require(cudaMemGetInfo(&free_bytes, &total_bytes), card_.id, "asking for its memory");
    return {.id = card_.id,
            .name = p.name,
            .total_bytes = static_cast<i64>(total_bytes),
            .free_bytes = static_cast<i64>(free_bytes),
            .compute_major = p.major,
            .compute_minor = p.minor,
            .packed = true};
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
    // CUDA goes through the host's memory by itself where there is no link between the two.
    return card_.check(cudaMemcpyPeerAsync(to.as<void>(), card_.ordinal, from.as<void>(), peer,
                                           static_cast<size_t>(bytes), static_cast<cudaStream_t>(stream.native())),
                       "a copy from another card");
  }

 private:
  mutable Card card_;
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
