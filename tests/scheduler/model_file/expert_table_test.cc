#include "scheduler/model_file/expert_table.h"

#include <doctest/doctest.h>

#include <cstring>

#include "kernels/base/error.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/gguf_writer.h"
#include "tests/scheduler/model_file/raw_gguf.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_folder.h"

using namespace stoker;
using namespace stoker::test;

static constexpr std::array kMatrices = {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down};

static ExpertTable table_of(const Gguf& gguf) {
  return ExpertTable::from_gguf(gguf, {.first_layer = gguf.need_int("deepseek2.leading_dense_block_count"),
                                       .end_layer = gguf.need_int("deepseek2.block_count"),
                                       .experts = gguf.need_int("deepseek2.expert_count"),
                                       .top_k = gguf.need_int("deepseek2.expert_used_count"),
                                       .hidden = gguf.need_int("deepseek2.embedding_length"),
                                       .ffn = gguf.need_int("deepseek2.expert_feed_forward_length")});
}

static std::string bytes_at(const Gguf& gguf, const Extent& extent) {
  std::ifstream in(gguf.files()[static_cast<size_t>(extent.file)].path, std::ios::binary);
  in.seekg(extent.offset);
  std::string bytes(static_cast<size_t>(extent.bytes), '\0');
  in.read(bytes.data(), extent.bytes);
  CHECK(in.good());
  return bytes;
}

TEST_CASE("a model and its four-part split have the same experts, byte for byte") {
  std::string one_path = shared_file("models/v3-mixed.gguf");
  std::string split_path = shared_file("models/v3-mixed-split-00001-of-00004.gguf");
  if (one_path.empty() || split_path.empty()) return;
  Gguf one = Gguf::open(one_path), split = Gguf::open(split_path);
  REQUIRE(split.files().size() == 4);
  REQUIRE(one.tensors().size() == split.tensors().size());
  for (const GgufTensor& a : one.tensors()) {
    const GgufTensor& b = split.tensor(a.name);
    INFO(a.name);
    CHECK(a.type == b.type);
    CHECK(a.shape == b.shape);
    CHECK((bytes_at(one, {a.file, a.offset, a.bytes, a.type}) ==
           bytes_at(split, {b.file, b.offset, b.bytes, b.type})));
  }
  ExpertTable a = table_of(one), b = table_of(split);
  REQUIRE(a.moe_layers() == b.moe_layers());
  CHECK(a.moe_layers() == 11);
  bool types_differ = false, more_than_one_file = false;
  for (const ExpertLayer& layer : a.layers()) {
    CHECK(a.expert_bytes(layer.layer) == b.expert_bytes(layer.layer));
    for (i64 e = 0; e < a.experts_per_layer(); e++)
      for (ExpertMatrix m : kMatrices) {
        Extent x = a.extent(layer.layer, ExpertId(e), m), y = b.extent(layer.layer, ExpertId(e), m);
        CHECK(x.type == y.type);
        CHECK((bytes_at(one, x) == bytes_at(split, y)));
        types_differ |= x.type != a.layers()[0].base[0].type;
        more_than_one_file |= y.file > 0;
      }
  }
  CHECK(types_differ);
  CHECK(more_than_one_file);
  CHECK(a.total_bytes() == b.total_bytes());
}

TEST_CASE("every deepseek2 model file gives a table that lies within the file") {
  for (const char* name :
       {"v3", "v3-mla", "k2", "v3-groups", "v2-lite", "ember-37m-q4_k_m", "ember-37m-q2_k"}) {
    std::string path = shared_file(std::string("models/") + name + ".gguf");
    if (path.empty()) return;
    Gguf gguf = Gguf::open(path);
    ExpertTable table = table_of(gguf);
    CHECK(table.moe_layers() > 0);
    LayerId last = table.layers().back().layer;
    for (ExpertMatrix m : kMatrices) {
      Extent extent = table.extent(last, ExpertId(table.experts_per_layer() - 1), m);
      CHECK(extent.offset + extent.bytes <= table.file_bytes()[0]);
      CHECK(extent.bytes > 0);
    }
    CHECK(table.moe_index(LayerId(0)) == -1);
    CHECK(table.moe_index(last) == table.moe_layers() - 1);
    CHECK(table.moe_index(LayerId(last.value + 1)) == -1);
  }
}

// --- made here
// ----------------------------------------------------------------------------------------------------------

static constexpr i64 kHidden = 64, kFfn = 32, kExperts = 3;

// Data in which every weight tells its place.
static std::string numbered(i64 weights, f32 first) {
  std::string bytes(static_cast<size_t>(weights) * 4, '\0');
  for (i64 i = 0; i < weights; i++) {
    f32 value = first + static_cast<f32>(i);
    std::memcpy(bytes.data() + i * 4, &value, 4);
  }
  return bytes;
}

static GgufFill fill_of(const std::string& bytes) {
  return gguf_from_memory(std::as_bytes(std::span(bytes)));
}

static f32 first_weight(const Gguf& gguf, const ExpertTable& table, i64 expert, ExpertMatrix matrix) {
  f32 value = 0;
  std::memcpy(&value, bytes_at(gguf, table.extent(LayerId(1), ExpertId(expert), matrix)).data(), 4);
  return value;
}

static const ExpertTable::Shape kShape{
    .first_layer = 1, .end_layer = 2, .experts = kExperts, .top_k = 2, .hidden = kHidden, .ffn = kFfn};

TEST_CASE("separate and fused gate and up tensors lead to the same experts") {
  i64 matrix = kHidden * kFfn;
  std::string all = numbered(matrix * kExperts, 0), down = numbered(matrix * kExperts, 100000);
  // In the fused tensor each expert has its gate rows, then its up rows.
  std::string fused = numbered(2 * matrix * kExperts, 0);
  TempFolder folder;
  GgufWriter one, two;
  one.add({"blk.1.ffn_gate_exps.weight", BlockType::F32, {kHidden, kFfn, kExperts}, fill_of(all)});
  one.add({"blk.1.ffn_up_exps.weight", BlockType::F32, {kHidden, kFfn, kExperts}, fill_of(all)});
  one.add({"blk.1.ffn_down_exps.weight", BlockType::F32, {kFfn, kHidden, kExperts}, fill_of(down)});
  two.add({"blk.1.ffn_gate_up_exps.weight", BlockType::F32, {kHidden, 2 * kFfn, kExperts}, fill_of(fused)});
  two.add({"blk.1.ffn_down_exps.weight", BlockType::F32, {kFfn, kHidden, kExperts}, fill_of(down)});
  Gguf a = Gguf::open(one.write(folder.file("a.gguf"))[0]),
       b = Gguf::open(two.write(folder.file("b.gguf"))[0]);
  ExpertTable separate = ExpertTable::from_gguf(a, kShape), joint = ExpertTable::from_gguf(b, kShape);
  for (i64 e = 0; e < kExperts; e++) {
    CHECK(first_weight(a, separate, e, ExpertMatrix::gate) == static_cast<f32>(e * matrix));
    CHECK(first_weight(a, separate, e, ExpertMatrix::up) == static_cast<f32>(e * matrix));
    CHECK(first_weight(b, joint, e, ExpertMatrix::gate) == static_cast<f32>(2 * e * matrix));
    CHECK(first_weight(b, joint, e, ExpertMatrix::up) == static_cast<f32>((2 * e + 1) * matrix));
    CHECK(first_weight(b, joint, e, ExpertMatrix::down) == static_cast<f32>(100000 + e * matrix));
  }
  CHECK(separate.expert_bytes(LayerId(1)) == 3 * 4 * matrix);
  CHECK(joint.expert_bytes(LayerId(1)) == 3 * 4 * matrix);
  CHECK(joint.total_bytes() == separate.total_bytes());
}

TEST_CASE("missing tensors, wrong shapes and old layouts are refused by name") {
  TempFolder folder;
  auto error = [&](std::vector<GgufTensorSpec> tensors) {
    GgufWriter writer;
    for (GgufTensorSpec& tensor : tensors) writer.add(std::move(tensor));
    Gguf gguf = Gguf::open(writer.write(folder.file("m.gguf"))[0]);
    return error_of([&] { ExpertTable::from_gguf(gguf, kShape); });
  };
  GgufTensorSpec gate{"blk.1.ffn_gate_exps.weight", BlockType::F32, {kHidden, kFfn, kExperts}, {}};
  GgufTensorSpec up{"blk.1.ffn_up_exps.weight", BlockType::F32, {kHidden, kFfn, kExperts}, {}};
  GgufTensorSpec down{"blk.1.ffn_down_exps.weight", BlockType::F32, {kFfn, kHidden, kExperts}, {}};
  GgufTensorSpec turned{"blk.1.ffn_down_exps.weight", BlockType::F32, {kHidden, kFfn, kExperts}, {}};
  GgufTensorSpec flat{"blk.1.ffn_up_exps.weight", BlockType::F32, {kHidden, kFfn * kExperts}, {}};
  CHECK(error({gate, up, down}) == "no error");
  CHECK(error({gate, down}).find("tensor 'blk.1.ffn_up_exps.weight' is missing") != std::string::npos);
  CHECK(error({gate, up, turned}).find("'blk.1.ffn_down_exps.weight' has the shape [64, 32, 3]") !=
        std::string::npos);
  CHECK(error({gate, flat, down}).find("calls for [64, 32, 3]") != std::string::npos);
  GgufTensorSpec old{"blk.1.ffn_gate.0.weight", BlockType::F32, {kHidden, kFfn}, {}};
  CHECK(error({old}).find("one tensor per expert") != std::string::npos);
}
