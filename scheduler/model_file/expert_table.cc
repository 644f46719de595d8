#include "scheduler/model_file/expert_table.h"

#include <algorithm>

#include <fmt/ranges.h>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "kernels/format/packed.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/pack.h"

namespace stoker {

static size_t index(ExpertMatrix matrix) { return static_cast<size_t>(matrix); }

ExpertTable::ExpertTable(std::vector<ExpertLayer> layers, i64 experts_per_layer, i64 top_k,
                         std::vector<i64> file_bytes)
    : layers_(std::move(layers)),
      experts_(experts_per_layer),
      top_k_(top_k),
      file_bytes_(std::move(file_bytes)) {
  CHECK(std::is_sorted(layers_.begin(), layers_.end(),
                       [](const ExpertLayer& a, const ExpertLayer& b) { return a.layer < b.layer; }));
}

// The tensor of all experts' matrices [cols, rows, experts]. Throws Error.
static const GgufTensor& stacked(const Gguf& gguf, const std::string& name, std::array<i64, 3> shape) {
  const GgufTensor& tensor = gguf.tensor(name);
  if (!std::equal(tensor.shape.begin(), tensor.shape.end(), shape.begin(), shape.end()))
    fail(
        "{}: tensor '{}' has the shape [{}], but the metadata calls for [{}]; the file is damaged or of "
        "another "
        "architecture",
        gguf.files()[static_cast<size_t>(tensor.file)].path, name, fmt::join(tensor.shape, ", "),
        fmt::join(shape, ", "));
  return tensor;
}

// Puts one matrix of `layer` where part `part` of `parts` equal row ranges of every expert of `tensor` lies.
static void place(ExpertLayer& layer, ExpertMatrix matrix, const GgufTensor& tensor, i64 part, i64 parts) {
  i64 expert_bytes = tensor.bytes / tensor.shape[2];
  i64 bytes = expert_bytes / parts;
  layer.base[index(matrix)] = {
      .file = tensor.file, .offset = tensor.offset + part * bytes, .bytes = bytes, .type = tensor.type};
  layer.stride_bytes[index(matrix)] = expert_bytes;
}

static ExpertLayer read_layer(const Gguf& gguf, const ExpertTable::Shape& shape, i64 number) {
  ExpertLayer layer{.layer = LayerId(number), .base = {}};
  auto name = [&](std::string_view what) { return fmt::format("blk.{}.{}.weight", number, what); };
  if (gguf.find_tensor(name("ffn_gate.0")) != nullptr && gguf.find_tensor(name("ffn_down_exps")) == nullptr)
    fail(
        "{}: an old file with one tensor per expert ('{}'); get a current one, where the experts of a layer "
        "are one "
        "tensor ('{}')",
        gguf.path(), name("ffn_gate.0"), name("ffn_gate_exps"));
  if (gguf.find_tensor(name("ffn_gate_up_exps")) != nullptr) {
    const GgufTensor& both =
        stacked(gguf, name("ffn_gate_up_exps"), {shape.hidden, 2 * shape.ffn, shape.experts});
    place(layer, ExpertMatrix::gate, both, 0, 2);
    place(layer, ExpertMatrix::up, both, 1, 2);
  } else {
    std::array<i64, 3> wide{shape.hidden, shape.ffn, shape.experts};
    place(layer, ExpertMatrix::gate, stacked(gguf, name("ffn_gate_exps"), wide), 0, 1);
    place(layer, ExpertMatrix::up, stacked(gguf, name("ffn_up_exps"), wide), 0, 1);
  }
  std::array<i64, 3> down{shape.ffn, shape.hidden, shape.experts};
  place(layer, ExpertMatrix::down, stacked(gguf, name("ffn_down_exps"), down), 0, 1);
  return layer;
}

ExpertTable ExpertTable::from_gguf(const Gguf& gguf, const Shape& shape) {
  CHECK(shape.first_layer >= 0 && shape.experts > 0);
  std::vector<ExpertLayer> layers;
  if (is_pack(gguf)) {
    layers = read_packed_layers(gguf, shape);
  } else {
    for (i64 number = shape.first_layer; number < shape.end_layer; number++)
      layers.push_back(read_layer(gguf, shape, number));
  }
  for (ExpertLayer& layer : layers)
    for (ExpertMatrix m : {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down}) {
      i64 rows = m == ExpertMatrix::down ? shape.hidden : shape.ffn, cols = m == ExpertMatrix::down ? shape.ffn : shape.hidden;
      layer.device_bytes[index(m)] = packed_bytes(layer.base[index(m)].type, rows, cols);
    }
  std::vector<i64> file_bytes;
  for (const GgufFileInfo& file : gguf.files()) file_bytes.push_back(file.bytes);
  return ExpertTable(std::move(layers), shape.experts, shape.top_k, std::move(file_bytes));
}

i64 ExpertTable::moe_index(LayerId layer) const {
  auto found = std::lower_bound(layers_.begin(), layers_.end(), layer,
                                [](const ExpertLayer& a, LayerId id) { return a.layer < id; });
  return found == layers_.end() || found->layer != layer ? -1 : found - layers_.begin();
}

const ExpertLayer& ExpertTable::layer(LayerId layer) const {
  i64 at = moe_index(layer);
  CHECK(at >= 0);
  return layers_[static_cast<size_t>(at)];
}

Extent ExpertTable::extent(LayerId layer_id, ExpertId expert, ExpertMatrix matrix) const {
  CHECK(expert.value >= 0 && expert.value < experts_);
  const ExpertLayer& found = layer(layer_id);
  Extent extent = found.base[index(matrix)];
  if (found.packed.empty()) {
    extent.offset += expert.value * found.stride_bytes[index(matrix)];
    return extent;
  }
  const ExpertPlace& place = found.packed[static_cast<size_t>(expert.value)];
  extent.file = place.file;
  extent.offset = place.offset;
  for (size_t before = 0; before < index(matrix); before++) extent.offset += found.base[before].bytes;
  return extent;
}

const u64* ExpertTable::checksum(LayerId layer_id, ExpertId expert) const {
  const std::vector<u64>& checksums = layer(layer_id).checksums;
  return checksums.empty() ? nullptr : &checksums[static_cast<size_t>(expert.value)];
}

i64 ExpertTable::expert_bytes(LayerId layer_id) const {
  i64 bytes = 0;
  for (const Extent& extent : layer(layer_id).base) bytes += extent.bytes;
  return bytes;
}

i64 ExpertTable::total_bytes() const {
  i64 bytes = 0;
  for (const ExpertLayer& layer : layers_) bytes += expert_bytes(layer.layer) * experts_;
  return bytes;
}

}  // namespace stoker
