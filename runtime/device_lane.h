// DeviceLane: how a device computes its experts of a layer, beside the CPU: the normed rows and the list of who wants
// which expert go up, the device's ops run, each expert's rows come back to the places that the CPU's experts would have
// filled. Between post() and finish() the caller does something else.
//
// Owner: the engine thread. Nothing is allocated after construction.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "kernels/device/stream.h"
#include "kernels/ops.h"

namespace stoker {

// An expert on the device, and whose rows it is applied to.
struct DeviceWork {
  Matrix gate, up, down;     // in the device's memory
  const i32* rows;           // [tokens] of the normed rows
  const i32* out_rows;       // [tokens] of the results
  i64 tokens;
};

class DeviceLane {
 public:
  struct Limits {
    i64 rows = 0;  // of a batch
    i64 top_k = 0;
    i64 experts = 0;  // of a layer
    i64 hidden = 0, ffn = 0;
    bool exact = false;
  };
  // What a lane takes of the device's memory.
  static i64 bytes_needed(const Limits& limits);

  // Throws Error when the device has no room, or cannot run an op. `device` must outlive the lane. Host devices compute with the kernels of
  // `level`.
  DeviceLane(Device& device, const Ops& ops, IsaLevel level, const Limits& limits);
  // Waits for what was posted.
  ~DeviceLane() = default;

  // `x` [rows, hidden] and the work's lists are read before it returns.
  void post(const f32* x, i64 rows, std::span<const DeviceWork> work);
  // Blocks until what was posted has ended and puts its rows into `out` [rows * top_k, hidden]. Nothing when nothing was
  // posted. Failure: the device is lost to us, and so is what it was to compute.
  Status finish(f32* out);

  bool failed() const { return failed_; }
  i64 host_bytes() const { return x_here_.bytes() + rows_here_.bytes() + out_here_.bytes(); }

 private:
  void prepare();
  void post_all(const f32* x, i64 rows, std::span<const DeviceWork> work);
  void quantize(i64 rows, std::span<const DeviceWork> work);
  void post_wave(std::span<const ExpertWork> wave, i64 first, i64 pairs);

  Limits limits_;
  const Ops& ops_;
  i64 wave_pairs_;  // most (row, expert) pairs computed at a time
  // The host's side.
  PinnedBuffer x_here_;     // [rows, hidden]
  PinnedBuffer rows_here_;  // [pairs] of x
  PinnedBuffer out_here_;   // [pairs, hidden]
  // The device's.
  DeviceBuffer x_, q8_32_, q8_256_, rows_, counting_, out_, scratch_;
  std::vector<ExpertWork> work_;
  std::vector<i32> out_rows_;  // [pairs] where each row of out_here_ goes
  std::unique_ptr<DeviceEvent> event_;
  std::unique_ptr<DeviceStream> device_stream_;  // goes before all that what it runs uses
  Stream stream_;
  bool posted_ = false;
  Status recorded_;  // whether event_ stands for what was posted
  bool failed_ = false;
};

// A lane, and the memory of its device where the scheduler keeps experts.
struct DeviceArenaLane {
  DeviceBuffer arena;
  std::unique_ptr<DeviceLane> lane;
};

}  // namespace stoker
