#include "runtime/device_weights.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/format/packed.h"

namespace stoker {

namespace {

constexpr i64 kAlignment = 256;
constexpr i64 kStagingBytes = 4 * kMiB;

i64 file_bytes(const Matrix& m) { return m.rows * row_bytes(m.type, m.cols); }

// In either order, which is not known before there is a device.
i64 room(const Matrix& m) {
  return m.rows == 0 ? 0 : round_up(std::max(file_bytes(m), packed_bytes(m.type, m.rows, m.cols)), kAlignment);
}

// Bytes of ascending places, gathered in pinned memory: a copy for each piece of it, not for each matrix.
class Upload {
 public:
  Upload(Device& device, DevicePtr to)
      : to_(to), staging_(device, kStagingBytes, "weights for a device"), stream_(device.make_stream()) {}

  void put(i64 at, const void* data, i64 bytes) {
    for (i64 done = 0; done < bytes;) {
      if (at + done >= begin_ + kStagingBytes) flush(at + done);
      i64 n = std::min(bytes - done, begin_ + kStagingBytes - (at + done));
      std::memcpy(staging_.as<std::byte>() + (at + done - begin_), static_cast<const std::byte*>(data) + done,
                  static_cast<size_t>(n));
      done += n;
      end_ = at + done;
    }
  }
  // What is put next begins at `next` or later.
  void flush(i64 next) {
    if (end_ > begin_) {
      Status status = stream_->copy_to_device(to_ + begin_, staging_.as<std::byte>(), end_ - begin_);
      if (status.ok()) status = stream_->synchronize();
      if (!status.ok()) throw Error(status.message());
    }
    begin_ = end_ = next;
  }

 private:
  DevicePtr to_;
  PinnedBuffer staging_;
  std::unique_ptr<DeviceStream> stream_;
  i64 begin_ = 0, end_ = 0;  // of what staging_ holds
};

}  // namespace

i64 DeviceWeights::bytes_needed(const LayerWeights& layer) {
  return room(layer.gate) + room(layer.up) + room(layer.down);
}

DeviceWeights::DeviceWeights(Device& device, std::span<const LayerWeights> layers, std::span<const i32> homes, i32 index)
    : ffns_(layers.size()) {
  i64 bytes = 0;
  for (size_t l = 0; l < layers.size(); l++) bytes += homes[l] == index ? bytes_needed(layers[l]) : 0;
  if (bytes == 0) return;
  memory_ = DeviceBuffer(device, bytes, "resident weights");
  Upload upload(device, memory_.data());
  bool packed = device.properties().packed;
  std::vector<std::byte> in_order;
  i64 at = 0;
  auto place = [&](const Matrix& m) {
    if (packed && m.rows > 0 && info(m.type).block_weights > 1) {
      in_order.resize(static_cast<size_t>(packed_bytes(m.type, m.rows, m.cols)));
      pack_rows(m.type, m.rows, m.cols, static_cast<const std::byte*>(m.data), in_order.data());
      upload.put(at, in_order.data(), static_cast<i64>(in_order.size()));
    } else {
      upload.put(at, m.data, file_bytes(m));
    }
    Matrix there = m;
    there.data = (memory_.data() + at).as<const void>();
    at += room(m);
    return there;
  };
  for (size_t l = 0; l < layers.size(); l++)
    if (homes[l] == index)
      ffns_[l] = {.gate = place(layers[l].gate), .up = place(layers[l].up), .down = place(layers[l].down)};
  upload.flush(at);
}

i64 DeviceWeights::layers() const {
  return std::count_if(ffns_.begin(), ffns_.end(), [](const ResidentFfn& f) { return f.gate.rows > 0; });
}

}  // namespace stoker
