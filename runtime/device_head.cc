#include "runtime/device_head.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/base/check.h"

namespace stoker {

namespace {

constexpr i64 kFloat = sizeof(f32);

i64 most_rows(const DeviceHead::Limits& l) { return std::min(l.rows, DeviceHead::kRows); }
i64 x_bytes(const DeviceHead::Limits& l) { return most_rows(l) * l.hidden * kFloat; }
i64 logits_bytes(const DeviceHead::Limits& l, i64 vocab_rows) { return most_rows(l) * vocab_rows * kFloat; }
i64 forms_bytes(const DeviceHead::Limits& l) { return ActivationRows::bytes_needed(most_rows(l) * l.hidden, most_rows(l)); }

}  // namespace

i64 DeviceHead::bytes_needed(const Limits& l) {
  constexpr i64 kParts = 3, kAlignment = 256;
  return x_bytes(l) + logits_bytes(l, l.vocab) + forms_bytes(l) + kParts * kAlignment;
}

DeviceHead::DeviceHead(Device& device, const Ops& ops, IsaLevel level, const Limits& l, const DeviceWeights& weights)
    : limits_(l),
      part_(*weights.head()),
      x_here_(device, x_bytes(l), "rows for a device"),
      logits_here_(device, logits_bytes(l, part_.weights.rows), "logits from a device"),
      x_(device, x_bytes(l), "rows"),
      logits_(device, logits_bytes(l, part_.weights.rows), "logits"),
      forms_(device, forms_bytes(l), "quantised rows"),
      inputs_(ops, most_rows(l) * l.hidden, most_rows(l), forms_.data().as<std::byte>()),
      event_(device.make_event()),
      device_stream_(device.make_stream()),
      stream_(*device_stream_, level) {}

// What goes wrong here breaks the stream, so finish() hears of it.
void DeviceHead::post(const f32* x, i64 rows) {
  CHECK(posted_ == 0 && rows <= most_rows(limits_));
  posted_ = rows;
  i64 bytes = rows * limits_.hidden * kFloat;
  std::memcpy(x_here_.as<f32>(), x, static_cast<size_t>(bytes));
  try {
    device_stream_->label("output head");
    static_cast<void>(device_stream_->copy_to_device(x_.data(), x_here_.as<f32>(), bytes));
    inputs_.set(x_.data().as<f32>(), rows, limits_.hidden);
    inputs_.multiply(stream_, part_.weights, limits_.exact, logits_.data().as<f32>(), part_.weights.rows);
    static_cast<void>(device_stream_->copy_to_host(logits_here_.as<f32>(), logits_.data(), rows * part_.weights.rows * kFloat));
    recorded_ = device_stream_->record(*event_);
  } catch (const Error& e) {  // by which an op says that its card cannot be used any more
    recorded_ = Status::failure(e.what());
  }
}

Status DeviceHead::finish(f32* logits) {
  const i64 rows = std::exchange(posted_, 0), width = part_.weights.rows;
  Status status = recorded_.ok() ? event_->wait() : device_stream_->synchronize();
  if (status.ok()) status = recorded_;
  if (!status.ok()) return status;
  for (i64 r = 0; r < rows; r++)
    std::memcpy(logits + r * limits_.vocab + part_.first_row, logits_here_.as<f32>() + r * width,
                static_cast<size_t>(width * kFloat));
  return {};
}

}  // namespace stoker
