#include "kernels/device/link_probe.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/buffer.h"
#include "kernels/base/clock.h"

namespace stoker {

namespace {

class LinkProbe {
 public:
  LinkProbe(Device& device, i64 bytes)
      : device_(device), bytes_(bytes), host_(bytes, "measuring a link"), stream_(device.make_stream()) {
    std::memset(host_.data(), 0, static_cast<size_t>(bytes));
    // Unpinned memory is slower, which is then what there is to measure.
    pinned_ = device.pin_host(host_.data(), host_.bytes(), false).ok();
  }
  ~LinkProbe() {
    static_cast<void>(stream_->synchronize());
    if (pinned_) device_.unpin_host(host_.data());
    for (DevicePtr memory : memory_) device_.free(memory);
  }
  LinkProbe(const LinkProbe&) = delete;
  LinkProbe& operator=(const LinkProbe&) = delete;

  Status run(int rounds, LinkMeasure& result) {
    for (DevicePtr& memory : memory_) {
      Status status = device_.allocate(bytes_, "measuring", memory);
      if (!status.ok()) return status;
    }
    Status status;
    for (int i = 0; i < rounds && status.ok(); i++) {
      status = time(result.to_device_gb_per_second, 1, [&] { return stream_->copy_to_device(memory_[0], host_.data(), bytes_); });
      if (status.ok())
        status = time(result.to_host_gb_per_second, 1, [&] { return stream_->copy_to_host(host_.data(), memory_[0], bytes_); });
      if (status.ok())
        status = time(result.memory_gb_per_second, 2, [&] { return stream_->copy_within(memory_[1], memory_[0], bytes_); });
    }
    return status;
  }

 private:
  template <class Post>
  Status time(f64& best, int passes, Post post) {
    i64 begin = steady_clock().now_ns();
    Status posted = post();
    Status status = stream_->synchronize();
    f64 ns = static_cast<f64>(steady_clock().now_ns() - begin);
    best = std::max(best, static_cast<f64>(bytes_ * passes) / ns);
    return posted.ok() ? status : posted;
  }

  Device& device_;
  i64 bytes_;
  Buffer host_;
  bool pinned_ = false;
  std::unique_ptr<DeviceStream> stream_;
  DevicePtr memory_[2];
};

}  // namespace

Status measure_link(Device& device, i64 bytes, int rounds, LinkMeasure& result) {
  return LinkProbe(device, bytes).run(rounds, result);
}

}  // namespace stoker
