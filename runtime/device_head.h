// DeviceHead: a device's part of the vocabulary in the output head. Normed rows go up, logits come back to pinned memory.
// Rows are normed by the CPU: they are few, other devices or the CPU may want them for their parts, and a norm takes it
// less time than a card takes to begin with one.
//
// Owner: the engine thread. Nothing is allocated after construction.
#pragma once

#include <memory>

#include "kernels/device/device_buffer.h"
#include "kernels/device/stream.h"
#include "runtime/activation_rows.h"
#include "runtime/device_weights.h"

namespace stoker {

class DeviceHead {
 public:
  // Most rows at a time: a text whose every row wants logits takes turns, so that they need not all be there at once.
  static constexpr i64 kRows = 32;
  struct Limits {
    i64 rows = 0;  // of a batch
    i64 hidden = 0;
    i64 vocab = 0;  // all of it
    bool exact = false;
  };
  // What it takes of the device's memory beside weights, whatever its part.
  static i64 bytes_needed(const Limits& limits);

  // Throws Error when the device has no room. Device and weights, which say the part, must outlive it. Host devices compute
  // with the kernels of `level`.
  DeviceHead(Device& device, const Ops& ops, IsaLevel level, const Limits& limits, const DeviceWeights& weights);

  i64 first_row() const { return part_.first_row; }  // of the vocabulary
  i64 rows() const { return part_.weights.rows; }

  // `x` [rows, hidden], normed, is read before it returns. At most kRows.
  void post(const f32* x, i64 rows);
  // Blocks until the logits are there, and puts them into `logits` [rows, vocab], this part of each row. Failure: the device
  // is lost to us.
  Status finish(f32* logits);

  i64 host_bytes() const { return x_here_.bytes() + logits_here_.bytes(); }

 private:
  Limits limits_;
  const HeadPart& part_;
  // The host's side.
  PinnedBuffer x_here_;       // [rows, hidden]
  PinnedBuffer logits_here_;  // [rows, rows()]
  // The device's.
  DeviceBuffer x_, logits_, forms_;
  ActivationRows inputs_;
  i64 posted_ = 0;
  Status recorded_;
  std::unique_ptr<DeviceEvent> event_;
  std::unique_ptr<DeviceStream> device_stream_;  // goes before all that what it runs uses
  Stream stream_;
};

}  // namespace stoker
