// DeviceHeads: of rows that are generated behind a long context, the last heads, computed by another device than the layer's
// home, beside it. A head reads the whole cache and multiplies it 240 times per byte (DeepSeek-V3), so time falls with the heads;
// what crosses the link, a head's query and result, does not grow with the context. The other device has a copy of the cache
// for it, brought up to date when it is asked: nothing as long as contexts are short.
//
// Results are the home's bits: heads never meet. A device that cannot any more leaves them to the home.
// Owner: the engine thread. Nothing is allocated after construction.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "kernels/device/stream.h"
#include "runtime/attention_layer.h"
#include "runtime/device_attention.h"

namespace stoker {

class DeviceHeads final : public OtherHeads {
 public:
  // Of the other device's memory, for so many layers of the home.
  static i64 bytes_needed(const Ops& ops, const Hparams& hparams, const DeviceAttention::Limits& limits, i64 layers);

  // For contexts of `from` positions on. Throws Error when the device has no room. Devices and hparams must outlive it. Host
  // devices compute with the kernels of `level`.
  DeviceHeads(Device& device, Device& home, const Ops& ops, IsaLevel level, const Hparams& hparams,
              const DeviceAttention::Limits& limits, i64 layers, i64 from);

  // A pass of the home's layer `place`, counted from 0, is about to be posted: rows from the runs' positions on are new.
  void begin(i64 place, std::span<const SequenceRun> runs);

  i64 heads(i64 length) const override;
  void post(Stream& home, const Row& row) override;
  bool take(Stream& home, f32* out) override;

  i64 bytes() const;

 private:
  void post_all(Stream& home, const Row& row);
  i64 row_bytes() const;
  i64& known(SequenceId sequence);

  Device& device_;
  Device& home_;
  const Ops& ops_;
  const Hparams& h_;
  DeviceAttention::Limits limits_;
  i64 from_;
  DeviceBuffer cache_;  // [layers, sequences, context, latent + rope]
  DeviceBuffer q_;         // [heads, nope + rope]
  DeviceBuffer q_latent_;  // [heads, latent]
  DeviceBuffer out_;       // [heads, latent]
  DeviceBuffer scratch_;
  std::vector<i64> known_;  // [layers, sequences] first positions that the copy has
  i64 place_ = 0;
  LatentAttentionArgs::Query query_{};  // that posted ops look at
  i64 heads_ = 0;                       // posted and not taken
  Status recorded_;  // whether the event stands for what was posted
  bool failed_ = false;
  std::unique_ptr<DeviceEvent> asked_, done_;
  std::unique_ptr<DeviceStream> device_stream_;  // goes before all that what it runs uses
  Stream stream_;
};

}  // namespace stoker
