#include "kernels/device/device_buffer.h"

namespace stoker {

DeviceBuffer::DeviceBuffer(Device& device, i64 bytes, const char* purpose) : device_(&device), bytes_(bytes) {
  if (bytes == 0) return;
  Status status = device.allocate(bytes, purpose, data_);
  if (!status.ok()) throw Error(status.message());
}

DeviceBuffer::~DeviceBuffer() {
  if (device_ != nullptr) device_->free(data_);
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedBuffer::PinnedBuffer(Device& device, i64 bytes, const char* purpose, PinnedUse use)
    : device_(device), buffer_(bytes, purpose) {
  const bool mapped = use == PinnedUse::mapped;
  pinned_ = bytes > 0 && device.pin_host(buffer_.data(), buffer_.bytes(), mapped).ok();
  if (pinned_ && mapped) mapped_ = device.mapped_address(buffer_.data());
}

PinnedBuffer::~PinnedBuffer() {
  if (pinned_) device_.unpin_host(buffer_.data());
}

}  // namespace stoker
