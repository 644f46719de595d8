// EnginePacking: the packed order of matrices, as the scheduler's copier asks a device for it. The scheduler knows bytes;
// this knows what format and shape they have, and the device's ops.
// Owner: the engine thread.
#pragma once

#include "kernels/device/stream.h"
#include "kernels/ops.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/tiers/device_copier.h"

namespace stoker {

class EnginePacking final : public DeviceOrder {
 public:
  struct Shape {
    i64 hidden, ffn;  // gate and up are [ffn, hidden], down is [hidden, ffn]
  };
  // `ops`, with pack and unpack, and the table must outlive it.
  EnginePacking(const ExpertTable& table, const Shape& shape, const Ops& ops) : table_(table), shape_(shape), ops_(ops) {}

  bool differs(LayerId layer, size_t matrix) const override;
  Status to_device_order(DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) override;
  Status to_file_order(DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) override;

  // Of the table's matrices in the file's order: what the copier's staging buffers must hold.
  static i64 largest_matrix_bytes(const ExpertTable& table);

 private:
  using Reorder = void (*)(Stream&, const ReorderArgs&);
  Status post(Reorder reorder, DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) const;

  const ExpertTable& table_;
  Shape shape_;
  const Ops& ops_;
};

}  // namespace stoker
