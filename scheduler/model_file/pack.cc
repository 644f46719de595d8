#include "scheduler/model_file/pack.h"

#include <filesystem>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "scheduler/model_file/gguf.h"

namespace stoker {

namespace {

constexpr std::string_view kVersionKey = "stoker.pack.version";
constexpr std::string_view kStripesKey = "stoker.pack.stripes";
constexpr std::string_view kIdKey = "stoker.pack.id";
constexpr std::string_view kPackedInfix = ".experts.packed.";

template <class T>
const T& needed(const Gguf& gguf, std::string_view key, const T* value) {
  if (value == nullptr) fail("{}: metadata key '{}' is missing; pack the model again", gguf.path(), key);
  return *value;
}

void check_version(const Gguf& gguf) {
  i64 version = gguf.need_int(kVersionKey);
  if (version != kPackVersion)
    fail("{}: '{}' is {}; this stoker reads version {}: pack the model again with it", gguf.path(), kVersionKey,
         version, kPackVersion);
}

const std::string& file_of(const Gguf& gguf, const GgufTensor& tensor) {
  return gguf.files()[static_cast<size_t>(tensor.file)].path;
}

}  // namespace

std::string packed_tensor_name(LayerId layer, i64 stripe) {
  return fmt::format("blk.{}{}{}", layer.value, kPackedInfix, stripe);
}

bool is_packed_tensor(std::string_view name) {
  return name.starts_with("blk.") && name.find(kPackedInfix) != std::string_view::npos;
}

StripePlace stripe_place(i64 moe_layer, ExpertId expert, i64 stripes) {
  return {(moe_layer + expert.value) % stripes, expert.value / stripes};
}

i64 stripe_records(i64 moe_layer, i64 experts, i64 stripe, i64 stripes) {
  i64 first = ((stripe - moe_layer) % stripes + stripes) % stripes;  // the stripe's first expert of this layer
  return first < experts ? (experts - first - 1) / stripes + 1 : 0;
}

std::string stripe_file_name(const std::string& main, i64 stripe, i64 stripes) {
  std::string name = std::filesystem::path(main).filename();
  if (name.ends_with(".gguf")) name.resize(name.size() - 5);
  return fmt::format("{}.stripe{}of{}.gguf", name, stripe + 1, stripes);
}

bool is_pack(const Gguf& gguf) { return gguf.find(kVersionKey) != nullptr; }

i64 pack_stripes(const Gguf& gguf) {
  const std::vector<std::string>* others = gguf.get_strings(kStripesKey);
  return others == nullptr ? 1 : 1 + static_cast<i64>(others->size());
}

std::vector<std::string> find_stripes(const Gguf& main) {
  check_version(main);
  const std::vector<std::string>& recorded = needed(main, kStripesKey, main.get_strings(kStripesKey));
  if (recorded.empty() || static_cast<i64>(recorded.size()) >= kPackStripes)
    fail("{}: '{}' names {} files; 1 to {} are possible", main.path(), kStripesKey, recorded.size(),
         kPackStripes - 1);
  std::filesystem::path folder = std::filesystem::path(main.path()).parent_path();
  std::vector<std::string> found;
  std::string missing;
  for (const std::string& name : recorded) {
    std::error_code ignored;
    std::filesystem::path as_written = folder / name;  // an absolute name stays as it is
    std::filesystem::path beside = folder / std::filesystem::path(name).filename();
    if (std::filesystem::exists(as_written, ignored)) {
      found.push_back(as_written);
    } else if (std::filesystem::exists(beside, ignored)) {
      found.push_back(beside);
    } else {
      missing += fmt::format("{}{}", missing.empty() ? "" : ", ", as_written.string());
    }
  }
  if (!missing.empty())
    fail("{}: the pack has {} stripes, but these are missing: {}; put them there or beside the first", main.path(),
         recorded.size() + 1, missing);
  return found;
}

void check_stripe(const Gguf& main, const Gguf& stripe, i64 number) {
  check_version(stripe);
  i64 says = stripe.get_int("stoker.pack.stripe").value_or(0);
  if (stripe.need_string(kIdKey) != main.need_string(kIdKey) || says != number)
    fail("{}: not stripe {} of {}: it is of another pack, or of another packing of the same model ('{}', "
         "'stoker.pack.stripe'); pack the model again",
         stripe.path(), number + 1, main.path(), kIdKey);
}

// --- the experts
// --------------------------------------------------------------------------------------------------------

namespace {

class LayerReader {
 public:
  LayerReader(const Gguf& gguf, const ExpertTable::Shape& shape)
      : gguf_(gguf), shape_(shape), layers_(shape.end_layer - shape.first_layer), stripes_(pack_stripes(gguf)) {
    check_version(gguf);
    if (stripes_ > shape.experts)
      fail("{}: '{}': {} stripes for {} experts; pack the model again", gguf.path(), kStripesKey, stripes_,
           shape.experts);
    if (stripes_ > 1 && static_cast<i64>(gguf.files().size()) != stripes_)
      fail("{}: a striped pack that is split in shards as well; pack the model again", gguf.path());
    std::vector<i64> numbers = ints("stoker.pack.layers");
    for (i64 l = 0; l < layers_; l++)
      if (numbers[static_cast<size_t>(l)] != shape.first_layer + l)
        fail("{}: 'stoker.pack.layers' has layer {} where the model's shape calls for {}: the file is damaged",
             gguf.path(), numbers[static_cast<size_t>(l)], shape.first_layer + l);
    types_ = {ints("stoker.pack.gate_types"), ints("stoker.pack.up_types"), ints("stoker.pack.down_types")};
    read_checksums();
  }

  ExpertLayer read(i64 moe_layer) const {
    ExpertLayer layer{.layer = LayerId(shape_.first_layer + moe_layer), .base = {}};
    i64 bytes = 0;
    for (i64 m = 0; m < kExpertMatrices; m++) {
      Extent& extent = layer.base[static_cast<size_t>(m)];
      extent.type = type_of(moe_layer, m);
      extent.bytes = matrix_bytes(extent.type, m);
      if (__builtin_add_overflow(bytes, extent.bytes, &bytes)) too_large();
    }
    i64 limit = 0;
    if (__builtin_add_overflow(bytes, kPackAlignment, &limit)) too_large();
    i64 record = round_up(bytes, kPackAlignment);
    std::vector<const GgufTensor*> tensors;
    for (i64 s = 0; s < stripes_; s++) tensors.push_back(&tensor(moe_layer, s, record));
    for (i64 e = 0; e < shape_.experts; e++) {
      StripePlace place = stripe_place(moe_layer, ExpertId(e), stripes_);
      const GgufTensor& in = *tensors[static_cast<size_t>(place.stripe)];
      layer.packed.push_back({in.file, in.offset + place.record * record});
    }
    i64 at = layer.packed[0].offset;
    for (Extent& extent : layer.base) {
      extent.file = layer.packed[0].file;
      extent.offset = at;
      at += extent.bytes;
    }
    auto first = checksums_.begin() + moe_layer * shape_.experts;
    layer.checksums.assign(first, first + shape_.experts);
    return layer;
  }

 private:
  std::vector<i64> ints(std::string_view key) const {
    std::optional<std::vector<i64>> found = gguf_.get_ints(key);
    needed(gguf_, key, found ? &*found : nullptr);
    if (static_cast<i64>(found->size()) != layers_)
      fail("{}: '{}' has {} values for {} layers: the file is damaged", gguf_.path(), key, found->size(), layers_);
    return *found;
  }

  void read_checksums() {
    constexpr std::string_view kKey = "stoker.pack.checksums";
    const GgufValue& value = needed(gguf_, kKey, gguf_.find(kKey));
    const auto* sums = std::get_if<std::vector<u64>>(&value.value);
    if (sums == nullptr || value.element != GgufValueType::U64)
      fail("{}: metadata key '{}' is not an array of U64: the file is damaged", gguf_.path(), kKey);
    i64 wanted = 0;
    if (__builtin_mul_overflow(layers_, shape_.experts, &wanted) || static_cast<i64>(sums->size()) != wanted)
      fail("{}: '{}' has {} values for {} layers of {} experts: the file is damaged", gguf_.path(), kKey,
           sums->size(), layers_, shape_.experts);
    checksums_ = *sums;
  }

  BlockType type_of(i64 moe_layer, i64 matrix) const {
    i64 id = types_[static_cast<size_t>(matrix)][static_cast<size_t>(moe_layer)];
    const BlockTypeInfo* block = id >= 0 && id < kBlockTypeLimit ? find_block_type(static_cast<u32>(id)) : nullptr;
    constexpr const char* kNames[] = {"gate", "up", "down"};
    i64 cols = matrix == 2 ? shape_.ffn : shape_.hidden;
    if (block == nullptr || cols % block->block_weights != 0)
      fail("{}: 'stoker.pack.{}_types': block type number {} of layer {} cannot be{}", gguf_.path(),
           kNames[matrix], id, shape_.first_layer + moe_layer,
           block == nullptr ? "" : fmt::format(": rows have {} weights", cols));
    return block->type;
  }

  i64 matrix_bytes(BlockType type, i64 matrix) const {
    i64 cols = matrix == 2 ? shape_.ffn : shape_.hidden, rows = matrix == 2 ? shape_.hidden : shape_.ffn;
    const BlockTypeInfo& block = info(type);
    i64 row = 0, bytes = 0;
    if (__builtin_mul_overflow(cols / block.block_weights, block.block_bytes, &row) ||
        __builtin_mul_overflow(row, rows, &bytes))
      too_large();
    return bytes;
  }

  [[noreturn]] void too_large() const {
    fail("{}: experts of {} x {} weights are too large: the file is damaged", gguf_.path(), shape_.hidden,
         shape_.ffn);
  }

  const GgufTensor& tensor(i64 moe_layer, i64 stripe, i64 record) const {
    const GgufTensor& found =
        gguf_.tensor(packed_tensor_name(LayerId(shape_.first_layer + moe_layer), stripe));
    i64 records = stripe_records(moe_layer, shape_.experts, stripe, stripes_);
    if (found.type != BlockType::I8 || found.shape != std::vector<i64>{record, records})
      fail("{}: tensor '{}' must be {} records of {} bytes (I8): the file is damaged", file_of(gguf_, found),
           found.name, records, record);
    if (found.offset % kPackAlignment != 0)
      fail("{}: tensor '{}' begins at {}, which is no multiple of {}: the file is damaged", file_of(gguf_, found),
           found.name, found.offset, kPackAlignment);
    if (stripes_ > 1 && found.file != stripe)
      fail("{}: tensor '{}' belongs into another stripe: the file is damaged", file_of(gguf_, found), found.name);
    return found;
  }

  const Gguf& gguf_;
  const ExpertTable::Shape& shape_;
  i64 layers_, stripes_;
  std::array<std::vector<i64>, kExpertMatrices> types_;
  std::vector<u64> checksums_;
};

}  // namespace

std::vector<ExpertLayer> read_packed_layers(const Gguf& gguf, const ExpertTable::Shape& shape) {
  LayerReader reader(gguf, shape);
  std::vector<ExpertLayer> layers;
  for (i64 l = 0; l < shape.end_layer - shape.first_layer; l++) layers.push_back(reader.read(l));
  return layers;
}

std::vector<const GgufTensor*> plain_tensors(const Gguf& pack) {
  std::vector<const GgufTensor*> plain;
  for (const GgufTensor& tensor : pack.tensors())
    if (!is_packed_tensor(tensor.name)) plain.push_back(&tensor);
  return plain;
}

}  // namespace stoker
