// DeviceAttention: attention of the layers whose home is a device, computed there, and behind it the router, whose rows are
// there then, and the FFN of all rows, which the device's lane has posted before the CPU sees a choice. The residual stream goes
// up and comes back, a few rows handed over by the device (MappedFlag), more of them as a copy, with the experts that were
// chosen behind it; weights and the rows of
// the KV cache are the device's. What attention stores is copied into the sequence's own cache (KvCache) too, a kilobyte per
// token and layer: slots are saved and restored there, and with it the CPU goes on when the device is lost. Rows that came into
// that cache in another way than by a pass are brought up before they are needed.
//
// Owner: the engine thread. Nothing is allocated after construction.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "kernels/device/mapped_flag.h"
#include "kernels/device/stream.h"
#include "runtime/attention_layer.h"
#include "runtime/device_lane.h"
#include "runtime/device_weights.h"
#include "runtime/router.h"

namespace stoker {

class DeviceHeads;

class DeviceAttention {
 public:
  struct Limits {
    i64 rows = 0;            // most rows of a batch
    i64 generated_rows = 0;  // most of them that are generated
    i64 context = 0;         // most positions of a sequence
    i64 sequences = 1;
    CacheType cache = CacheType::F16;
    bool exact = false;
  };
  // Whether the device's ops can compute this model's.
  static bool possible(const Ops& ops, const Hparams& hparams, const Limits& limits);
  // Of a layer's KV cache, in the device's memory.
  static i64 cache_bytes_needed(const Hparams& hparams, const Limits& limits);
  // What it takes of the device's memory beside weights and caches.
  static i64 bytes_needed(const Ops& ops, const Hparams& hparams, const Limits& limits);

  // Throws Error when the device has no room. Device, hparams and weights, which say the layers, must outlive it. Host
  // devices compute with the kernels of `level`.
  DeviceAttention(Device& device, const Ops& ops, IsaLevel level, const Hparams& hparams, const Limits& limits,
                  const DeviceWeights& weights);

  // x [rows, hidden] += attention(norm(x)), of a layer that the weights have, and, if it has experts, the gate and in `lane`, the
  // device's, the FFN of x's norm: begins with it. `x` and the batch are read before it returns.
  void post(LayerId layer, const AttentionLayer::Batch& batch, const f32* x, DeviceLane& lane, StageTimer& timer);
  // Blocks until x is there, and writes it, the new rows of the caches and, if there was a gate, its choice. Failure: the device
  // is lost to us.
  Status finish(f32* x, ExpertChoice& choice);

  // From the next post() on, where contexts are long enough for `others`, which must outlive this.
  void share_heads(DeviceHeads& others);

  i64 host_bytes() const { return x_here_.bytes() + rows_here_.bytes(); }
  i64 cache_bytes() const { return cache_.bytes(); }

 private:
  std::byte* latents(LayerId layer, SequenceId sequence) const;
  void bring_up(const SequenceRun& run);
  void post_all(const AttentionLayer::Batch& batch, const f32* x, DeviceLane& lane, StageTimer& timer);
  void post_gate(const ResidentRouter& router, const DeviceLane::EightBitRows& rows);
  bool can_hand_over() const;
  void hand_over();
  void copy_back();
  // Rows as they cross the link, in one piece: the residual stream, their positions, then what the gate chose.
  i64 positions_at() const { return rows_ * h_.hidden * i64{sizeof(f32)}; }
  i64 ids_at() const { return positions_at() + rows_ * i64{sizeof(i32)}; }
  i64 weights_at() const { return ids_at() + rows_ * h_.top_k * i64{sizeof(i32)}; }
  i64 end() const { return weights_at() + rows_ * h_.top_k * i64{sizeof(f32)}; }
  i64 bytes_back() const { return routed_ ? end() : positions_at(); }
  DevicePtr cache_rows(const SequenceRun& run) const { return {reinterpret_cast<u64>(run.latents + run.position * row_bytes_)}; }

  const Ops& ops_;
  const Hparams& h_;
  Limits limits_;
  const DeviceWeights& weights_;
  i64 row_bytes_;  // of a cache
  std::vector<i64> place_of_layer_;  // [layers] among those of this device
  // The host's side.
  PinnedBuffer x_here_;     // as x_
  PinnedBuffer rows_here_;  // [rows] of a cache
  MappedFlag handed_over_;
  // The device's.
  DeviceBuffer x_;  // [rows, hidden], then the rows' positions, ids and weights of experts
  DeviceBuffer normed_;  // [rows, hidden], what attention adds, then the norm
  DeviceBuffer logits_, frequencies_, scratch_;
  DeviceBuffer cache_;  // [layers of this device, sequences, context, latent + rope]
  AttentionLayer attention_;
  // Of what was posted.
  LayerId layer_;
  i64 rows_ = 0;
  DeviceHeads* others_ = nullptr;  // or none
  bool routed_ = false, hands_over_ = false;
  std::vector<SequenceRun> runs_;
  Status recorded_;
  std::unique_ptr<DeviceEvent> copied_, computed_;
  std::unique_ptr<DeviceStream> device_stream_;  // goes before all that what it runs uses
  Stream stream_;
};

}  // namespace stoker
