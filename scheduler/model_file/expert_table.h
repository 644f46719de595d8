// ExpertTable: where the bytes of every routed expert are. (layer, expert, matrix) -> file, offset, bytes, type.
// Types differ per layer and per matrix: the header decides, nothing is inferred from names of files.
// Immutable; any thread. This and numbers are all that policy and streamer know of a model.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels/base/ids.h"
#include "kernels/base/types.h"
#include "kernels/format/block_type.h"

namespace stoker {

class Gguf;

enum class ExpertMatrix { gate, up, down };
constexpr i64 kExpertMatrices = 3;

// One matrix of one expert in a file.
struct Extent {
  i32 file = 0;
  i64 offset = 0;
  i64 bytes = 0;
  BlockType type = BlockType::F32;
};

// Where a packed expert begins.
struct ExpertPlace {
  i32 file = 0;
  i64 offset = 0;
};

// One MoE layer. Expert e's matrix m lies at base[m].offset + e * stride_bytes[m] and is base[m].bytes long. In a
// packed layer it follows gate | up | down from packed[e] on, and base tells types and sizes (and expert 0's place).
struct ExpertLayer {
  LayerId layer;
  std::array<Extent, kExpertMatrices> base;
  std::array<i64, kExpertMatrices> stride_bytes{};
  // Room that each matrix needs on a device in the file's order or in the packed one (kernels/format/packed.h), which is
  // longer where rows are not a multiple of its tiles; 0: as many bytes as in the file.
  std::array<i64, kExpertMatrices> device_bytes{};
  std::vector<ExpertPlace> packed = {};  // [experts], or empty
  std::vector<u64> checksums = {};       // [experts] of the three matrices (checksum.h), or empty
};

class ExpertTable {
 public:
  ExpertTable() = default;
  // For tests and simulation.
  ExpertTable(std::vector<ExpertLayer> layers, i64 experts_per_layer, i64 top_k, std::vector<i64> file_bytes);
  // From blk.N.ffn_{gate,up,down}_exps.weight or blk.N.ffn_gate_up_exps.weight (gate rows first) of the MoE layers
  // [first_layer, end_layer), or from a pack (pack.h). Throws Error for a missing tensor or one of the wrong shape.
  struct Shape {
    i64 first_layer, end_layer;
    i64 experts, top_k, hidden, ffn;
  };
  static ExpertTable from_gguf(const Gguf& gguf, const Shape& shape);

  const std::vector<ExpertLayer>& layers() const { return layers_; }  // MoE layers, ascending
  i64 moe_layers() const { return static_cast<i64>(layers_.size()); }
  i64 experts_per_layer() const { return experts_; }
  i64 top_k() const { return top_k_; }
  const std::vector<i64>& file_bytes() const { return file_bytes_; }

  // Index into layers() of a transformer layer; -1 when it is dense.
  i64 moe_index(LayerId layer) const;
  const ExpertLayer& layer(LayerId layer) const;  // a MoE layer
  Extent extent(LayerId layer, ExpertId expert, ExpertMatrix matrix) const;
  // nullptr when the file has none.
  const u64* checksum(LayerId layer, ExpertId expert) const;
  i64 expert_bytes(LayerId layer) const;  // gate + up + down
  i64 total_bytes() const;

 private:
  std::vector<ExpertLayer> layers_;
  i64 experts_ = 0;
  i64 top_k_ = 0;
  std::vector<i64> file_bytes_;
};

}  // namespace stoker
