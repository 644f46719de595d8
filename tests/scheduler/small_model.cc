#include "tests/scheduler/small_model.h"

#include "kernels/base/checksum.h"
#include "tests/scheduler/pattern_file.h"

namespace stoker::test {

ExpertTable small_table(const SmallModel& model) {
  Rng rng(model.seed);
  std::vector<ExpertLayer> layers;
  std::vector<i64> file_bytes = {rng.below(2000), rng.below(2000)};  // something else comes first
  for (i64 l = 0; l < model.layers; l++) {
    ExpertLayer layer;
    layer.layer = LayerId(model.first_layer + l);
    for (size_t m = 0; m < kExpertMatrices; m++) {
      i32 file = static_cast<i32>(rng.below(2));
      i64 bytes =
          (3 + l % model.sizes) * 2368 + static_cast<i64>(m) * 6016;  // multiples of 32, as slices are
      i64& end = file_bytes[static_cast<size_t>(file)];
      end = round_up(end, 32);
      layer.base[m] = {file, end, bytes, BlockType::F32};
      layer.stride_bytes[m] = bytes;
      if (!model.packed) end += bytes * model.experts;
    }
    for (i64 e = 0; model.packed && e < model.experts; e++) {
      i32 file = static_cast<i32>((l + e) % 2);
      i64& end = file_bytes[static_cast<size_t>(file)];
      layer.packed.push_back({file, round_up(end, 4096)});
      i64 bytes = layer.base[0].bytes + layer.base[1].bytes + layer.base[2].bytes;
      std::vector<std::byte> data(static_cast<size_t>(bytes));
      fill_pattern(data.data(), static_cast<u64>(file), layer.packed.back().offset, bytes);
      layer.checksums.push_back(checksum(data));
      end = layer.packed.back().offset + bytes;
    }
    layers.push_back(layer);
  }
  return ExpertTable(std::move(layers), model.experts, model.top_k, file_bytes);
}

}  // namespace stoker::test
