// Owners of memory: on a device, and in the host's memory for copies to and from it.
#pragma once

#include <span>
#include <utility>

#include "kernels/base/buffer.h"
#include "kernels/device/device.h"

namespace stoker {

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Of undefined contents. Throws Error when the device has no room. The device must outlive it.
  DeviceBuffer(Device& device, i64 bytes, const char* purpose);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : device_(std::exchange(other.device_, nullptr)), data_(std::exchange(other.data_, {})), bytes_(other.bytes_) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

  DevicePtr data() const { return data_; }
  i64 bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  DevicePtr data_;
  i64 bytes_ = 0;
};

enum class PinnedUse { copies, mapped };

// Pinned where the user's limits allow it; copies are slower otherwise.
class PinnedBuffer {
 public:
  PinnedBuffer(Device& device, i64 bytes, const char* purpose, PinnedUse use = PinnedUse::copies);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(buffer_.data());
  }
  i64 bytes() const { return buffer_.bytes(); }
  // Where the device reads and writes it in place, or nothing: it is not for that, or not pinned.
  DevicePtr mapped() const { return mapped_; }

 private:
  Device& device_;
  Buffer buffer_;
  bool pinned_ = false;
  DevicePtr mapped_;
};

}  // namespace stoker
