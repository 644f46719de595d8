// DeviceWeights: in a device's memory, and in the order that it wants, the weights that every row passes of the layers
// whose home it is: attention's, and the dense FFN or the router and the shared experts; and its part of the output head.
// They are read from the files for it, a layer's part at a time; RAM keeps no copy but of norms and routers.
// Immutable after construction. Owner: the engine thread.
#pragma once

#include <span>
#include <vector>

#include "kernels/base/ids.h"
#include "kernels/device/device_buffer.h"
#include "scheduler/home_devices.h"
#include "runtime/weights.h"

namespace stoker {

// Addresses of the device.
struct ResidentFfn {
  Matrix gate, up, down;
};

struct ResidentRouter {
  const f32* norm = nullptr;  // the FFN's, [hidden]
  Matrix matrix;              // [experts, hidden]
  const f32* bias = nullptr;  // [experts] or nullptr
};

class DeviceWeights {
 public:
  // What a layer takes of its home. The weights' data need not be there.
  static i64 ffn_bytes(const LayerWeights& layer);  // with its router
  static i64 attention_bytes(const LayerWeights& layer);

  // Of what has device `index` for its home. Throws Error when the device has no room, a copy fails or a file cannot be
  // read, Interrupted when `progress` gives up. The device must outlive it.
  DeviceWeights(Device& device, const Weights& weights, const Homes& homes, i32 index, const ReadProgress& progress);

  // nullptr: its home is elsewhere.
  const ResidentFfn* ffn(LayerId layer) const {
    const ResidentFfn& ffn = ffns_[static_cast<size_t>(layer.value)];
    return ffn.gate.rows > 0 ? &ffn : nullptr;
  }
  // nullptr likewise, or in a dense layer.
  const ResidentRouter* router(LayerId layer) const {
    const ResidentRouter& router = routers_[static_cast<size_t>(layer.value)];
    return router.matrix.rows > 0 ? &router : nullptr;
  }
  // With attention's part alone; nullptr likewise.
  const LayerWeights* attention(LayerId layer) const {
    const LayerWeights& w = attention_[static_cast<size_t>(layer.value)];
    return w.kv_a.rows > 0 ? &w : nullptr;
  }
  // nullptr: it has no part of it.
  const HeadPart* head() const { return head_.weights.rows > 0 ? &head_ : nullptr; }
  i64 bytes() const { return memory_.bytes(); }
  i64 ffn_layers() const;
  i64 attention_layers() const;

 private:
  DeviceBuffer memory_;
  std::vector<ResidentFfn> ffns_;        // [layers]
  std::vector<ResidentRouter> routers_;  // [layers]
  std::vector<LayerWeights> attention_;  // [layers]
  HeadPart head_;
};

}  // namespace stoker
