#include "runtime/engine_packing.h"

#include <algorithm>

namespace stoker {

bool EnginePacking::differs(LayerId layer, size_t matrix) const {
  return info(table_.layer(layer).base[matrix].type).block_weights > 1;
}

Status EnginePacking::to_device_order(DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) {
  return post(ops_.pack, stream, layer, matrix, from, to);
}

Status EnginePacking::to_file_order(DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) {
  return post(ops_.unpack, stream, layer, matrix, from, to);
}

// An op says by an Error that its card cannot be used any more, and copies go on without the card.
Status EnginePacking::post(Reorder reorder, DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from,
                           DevicePtr to) const {
  bool down = matrix == static_cast<size_t>(ExpertMatrix::down);
  try {
    Stream of_device(stream, best_isa_level());
    reorder(of_device, {.type = table_.layer(layer).base[matrix].type,
                        .rows = down ? shape_.hidden : shape_.ffn,
                        .cols = down ? shape_.ffn : shape_.hidden,
                        .from = from.as<void>(),
                        .to = to.as<void>()});
  } catch (const Error& e) {
    return Status::failure(e.what());
  }
  return {};
}

i64 EnginePacking::largest_matrix_bytes(const ExpertTable& table) {
  i64 most = 0;
  for (const ExpertLayer& layer : table.layers())
    for (const Extent& matrix : layer.base) most = std::max(most, matrix.bytes);
  return most;
}

}  // namespace stoker
