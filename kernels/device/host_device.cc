#include "kernels/device/host_device.h"

#include "kernels/base/check.h"
#include "kernels/device/host_stream.h"

namespace stoker {

namespace {

class HostDevice final : public Device {
 public:
  HostDevice(const HostDeviceOptions& options, const std::string& id) : state_(options, id) {}

  void record(Timeline& timeline) override {
    state_.timeline = &timeline;
    state_.compute.lane = timeline.lane(state_.id);
    state_.up.lane = timeline.lane(state_.id + " up");
    state_.down.lane = timeline.lane(state_.id + " down");
  }

  DeviceKind kind() const override { return DeviceKind::host; }
  DeviceProperties properties() const override {
    return {.id = state_.id,
            .name = "host device",
            .total_bytes = state_.memory.bytes(),
            .free_bytes = state_.memory.free_bytes(),
            .packed = state_.options.packed};
  }
  Status status() const override { return state_.status(); }

  Status allocate(i64 bytes, const char* what, DevicePtr& memory) override {
    memory = state_.next_allocation_fails() ? DevicePtr{} : state_.memory.allocate(bytes);
    if (memory) return {};
    return Status::failure(fmt::format("{}: no {:.1f} MiB left for {}; a smaller --vram needs less", state_.id,
                                       static_cast<f64>(bytes) / kMiB, what));
  }
  void free(DevicePtr memory) override { state_.memory.free(memory); }

  std::unique_ptr<DeviceStream> make_stream() override {
    return std::make_unique<HostStream>(state_, state_.options.seed * 1000 + streams_++);
  }
  std::unique_ptr<DeviceEvent> make_event() override { return std::make_unique<HostEvent>(); }

  Status pin_host(void* begin, i64 bytes, bool mapped) override {
    if (state_.pinned.add(begin, bytes, mapped)) return {};
    return Status::failure(fmt::format("{}: the memory is pinned already", state_.id));
  }
  void unpin_host(void* begin) override { state_.pinned.remove(begin); }
  DevicePtr mapped_address(const void* host) const override {
    DevicePtr address{reinterpret_cast<u64>(host)};
    CHECK(state_.pinned.is_mapped(address));
    return address;
  }

  bool has_peer_access(const Device& other) const override { return other.kind() == DeviceKind::host; }
  Status copy_from_peer(DeviceStream& stream, DevicePtr to, Device& other, DevicePtr from, i64 bytes) override {
    CHECK(other.kind() == DeviceKind::host);
    return static_cast<HostStream&>(stream).copy_from_peer(to, static_cast<HostDevice&>(other).state_, from, bytes);
  }

 private:
  HostDeviceState state_;
  u64 streams_ = 0;
};

}  // namespace

std::unique_ptr<Device> open_host_device(const HostDeviceOptions& options, const std::string& id) {
  return std::make_unique<HostDevice>(options, id);
}

}  // namespace stoker
