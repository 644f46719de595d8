// DeviceLane: how a device computes its part of a layer, beside the CPU: the normed rows and the list of who wants which
// expert go up, the device's ops run, each expert's rows come back to the places that the CPU's experts would have filled.
// The layer's home also computes the FFN that every row passes, first, because predictions want it; and before that the gate.
// Where attention's home is the same it has asked the gate, and the rows lie there already (device_attention.h): nothing goes up,
// and the FFN does not wait for the CPU. Between posting and finish() the caller does something else.
//
// Owner: the engine thread. Nothing is allocated after construction.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "kernels/device/stream.h"
#include "kernels/ops.h"
#include "runtime/device_weights.h"
#include "runtime/hparams.h"
#include "runtime/router.h"

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
    bool exact = false;
  };
  // What a lane takes of the device's memory.
  static i64 bytes_needed(const Hparams& hparams, const Limits& limits);

  // Throws Error when the device has no room, or cannot run an op. Device and hparams must outlive the lane. Host devices compute
  // with the kernels of `level`.
  DeviceLane(Device& device, const Ops& ops, IsaLevel level, const Hparams& hparams, const Limits& limits);
  // Waits for what was posted.
  ~DeviceLane() = default;

  // `x` [rows, hidden] and the work's lists are read before they return. Gate and FFN are applied to all rows; all are of the same
  // `x`, and come in this order, if they do. Nothing is posted once the device has failed.
  void post_gate(const f32* x, i64 rows, const ResidentRouter& router);
  void post_resident(const f32* x, i64 rows, const ResidentFfn& resident);
  // In their stead, of rows in the device's memory that are there when `made` is done, with their wanted_rows(), and stay there
  // until finish().
  void post_resident(const f32* x, i64 rows, const ResidentFfn& resident, DeviceEvent& made);
  // In the device's memory: where this FFN wants rows in 8 bits, as quantize() makes them, or nullptr.
  struct EightBitRows {
    void* q8_32 = nullptr;
    void* q8_256 = nullptr;
  };
  EightBitRows wanted_rows(const ResidentFfn& resident) const;
  void post(const f32* x, i64 rows, std::span<const DeviceWork> work);
  // Whether a gate was posted and not taken.
  bool has_choice() const { return routed_rows_ > 0; }
  // Blocks until it has chosen. After a failure, which finish() tells, the choice is not made.
  void take_choice(ExpertChoice& choice);
  // Whether a resident FFN was posted, and whether its rows have come back.
  bool has_resident() const { return resident_rows_ > 0; }
  bool resident_done() { return !resident_recorded_.ok() || resident_event_->done(); }
  // Blocks until they have, and puts them into `out` [rows, hidden]. Failure: finish() fails too.
  Status take_resident(f32* out);
  // Blocks until what was posted has ended and puts experts' rows into `out` [rows * top_k, hidden], those of a resident FFN,
  // unless they were taken, into `resident` [rows, hidden]. Nothing when nothing was posted. Failure: the device is lost to us,
  // and so is what it was to compute.
  Status finish(f32* out, f32* resident);

  bool failed() const { return failed_; }
  // Something else has found out that the device is lost: nothing is posted any more.
  void lose();
  // Instead of finish(), where nobody wants what was posted.
  void abandon();
  i64 host_bytes() const {
    return x_here_.bytes() + rows_here_.bytes() + out_here_.bytes() + resident_here_.bytes() + choice_here_.bytes();
  }

 private:
  Status prepare();
  void send(const f32* x, i64 rows);
  void begin(const f32* x);
  void post_resident(i64 rows, const ResidentFfn& resident);
  void quantize(BlockType type, i64 rows);
  void send_lists(std::span<const DeviceWork> work);
  void put_resident(f32* out);
  Status wait_for_posted();
  void post_waves(std::span<const DeviceWork> work);
  void post_wave(std::span<const ExpertWork> wave, i64 first, i64 pairs);
  void post_ffn(std::span<const ExpertWork> work, i64 ffn, const DeviceBuffer& out);

  const Hparams& h_;
  Limits limits_;
  const Ops& ops_;
  i64 wave_pairs_;  // most (row, expert) pairs computed at a time
  // The host's side.
  PinnedBuffer x_here_;     // [rows, hidden]
  PinnedBuffer rows_here_;  // [pairs] of x
  PinnedBuffer out_here_;   // [pairs, hidden]
  PinnedBuffer resident_here_;  // [rows, hidden]
  PinnedBuffer choice_here_;    // ids [rows, top_k], behind them weights
  // The device's.
  DeviceBuffer x_, q8_32_, q8_256_, rows_, counting_, out_, resident_out_, logits_, choice_, scratch_;
  std::vector<ExpertWork> work_;
  ExpertWork resident_work_;
  std::vector<i32> out_rows_;  // [pairs] where each row of out_here_ goes
  std::unique_ptr<DeviceEvent> event_, resident_event_, choice_event_;
  std::unique_ptr<DeviceStream> device_stream_;  // goes before all that what it runs uses
  Stream stream_;
  // What was posted and is not finished: rows are there, in these forms; experts; so many rows of a resident FFN.
  const f32* x_there_ = nullptr;
  bool sent_ = false, have_q8_32_ = false, have_q8_256_ = false, posted_ = false;
  i64 resident_rows_ = 0;
  bool resident_taken_ = false;
  i64 routed_rows_ = 0;  // posted and not taken
  Status recorded_, resident_recorded_;  // whether the events stand for what was posted
  Status choice_recorded_;               // likewise, and how it went, once it was taken
  bool failed_ = false;
};

}  // namespace stoker
