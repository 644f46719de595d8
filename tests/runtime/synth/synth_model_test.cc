#include "runtime/synth/synth_model.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cmath>
#include <set>

#include "kernels/cpu/leaf.h"
#include "runtime/arch/deepseek2.h"
#include "runtime/engine.h"
#include "runtime/synth/model_shape.h"
#include "runtime/synth/weight_tiles.h"
#include "runtime/tokenizer/tokenizer.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf.h"
#include "tests/scheduler/model_file/raw_gguf.h"
#include "tests/support/shared_data.h"
#include "tests/support/temp_folder.h"

using namespace stoker;
using namespace stoker::test;

static ExpertTable table_of(const Gguf& gguf, const Hparams& h) {
  return ExpertTable::from_gguf(gguf, h.expert_shape());
}

static std::vector<std::byte> bytes_at(const Gguf& gguf, const Extent& extent) {
  std::ifstream in(gguf.files()[static_cast<size_t>(extent.file)].path, std::ios::binary);
  in.seekg(extent.offset);
  std::vector<std::byte> bytes(static_cast<size_t>(extent.bytes));
  in.read(reinterpret_cast<char*>(bytes.data()), extent.bytes);
  CHECK(in.good());
  return bytes;
}

static f64 deviation_of(const Gguf& gguf, const Extent& extent) {
  std::vector<std::byte> bytes = bytes_at(gguf, extent);
  const BlockTypeInfo& type = info(extent.type);
  std::vector<f32> values(static_cast<size_t>(extent.bytes / type.block_bytes * type.block_weights));
  leaf_table(IsaLevel::ref)
      .dequantize[static_cast<i64>(type.type)](bytes.data(), values.data(), static_cast<i64>(values.size()));
  f64 squares = 0;
  for (f32 value : values) squares += static_cast<f64>(value) * value;
  return std::sqrt(squares / static_cast<f64>(values.size()));
}

static std::string all_notes(const SynthResult& made) {
  std::string all;
  for (const std::string& note : made.notes) all += note + "\n";
  return all;
}

// Root mean square of the logits of a few positions; NaN when one is not finite.
static f64 logits_size(const std::string& path) {
  EngineOptions options;
  options.model_path = path;
  options.context = 64;
  options.threads = 1;
  Engine engine(options);
  std::vector<BatchRow> rows;
  for (i32 i = 0; i < 6; i++)
    rows.push_back({.sequence = SequenceId(0), .position = i, .token = i * 30, .logits = true});
  std::vector<f32> logits(static_cast<size_t>(6 * engine.hparams().vocab));
  Status status = engine.forward(rows, logits);
  INFO(status.message());
  REQUIRE(status.ok());
  f64 squares = 0;
  for (f32 logit : logits) squares += static_cast<f64>(logit) * logit;
  return std::sqrt(squares / static_cast<f64>(logits.size()));
}

TEST_CASE("a tiny model of every format loads, has weights of the wanted spread and gives sane logits") {
  TempFolder folder;
  for (const BlockTypeInfo& type : all_block_types()) {
    INFO(std::string(type.name));
    SynthResult made = write_synth_model({.shape = "tiny",
                                          .output = folder.file("tiny.gguf"),
                                          .experts = type.type,
                                          .down = type.type,
                                          .attention = type.type});
    Gguf gguf = Gguf::open(made.paths.at(0));
    Hparams h = read_deepseek2(gguf);
    CHECK(h.layers == 3);
    CHECK(gguf.tensor("blk.0.attn_q_a.weight").type == type.type);
    ExpertTable table = table_of(gguf, h);
    CHECK(table.moe_layers() == 2);
    for (ExpertMatrix matrix : {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down}) {
      Extent extent = table.extent(LayerId(2), ExpertId(15), matrix);
      CHECK(extent.type == type.type);
      CHECK(deviation_of(gguf, extent) == doctest::Approx(1.0 / 16).epsilon(0.1));
    }
    f64 size = logits_size(made.paths[0]);
    CHECK(size > 0.3);
    CHECK(size < 3);
  }
}

TEST_CASE("experts of a synthetic model differ from each other") {
  TempFolder folder;
  SynthResult made = write_synth_model({.shape = "tiny", .output = folder.file("tiny.gguf")});
  Gguf gguf = Gguf::open(made.paths[0]);
  ExpertTable table = table_of(gguf, read_deepseek2(gguf));
  std::set<u64> seen;  // hashes
  for (LayerId layer : {LayerId(1), LayerId(2)})
    for (i64 e = 0; e < 16; e++)
      for (ExpertMatrix matrix : {ExpertMatrix::gate, ExpertMatrix::up, ExpertMatrix::down}) {
        std::vector<std::byte> bytes = bytes_at(gguf, table.extent(layer, ExpertId(e), matrix));
        u64 hash = hash_text({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
        CHECK(seen.insert(hash).second);
      }
}

TEST_CASE("the seed decides the file, down to the last byte") {
  TempFolder folder;
  auto make = [&](u64 seed, const char* name) {
    return read_all(write_synth_model({.shape = "tiny", .output = folder.file(name), .seed = seed}).paths[0]);
  };
  std::string one = make(1, "a"), again = make(1, "b"), two = make(2, "c");
  CHECK((one == again));
  CHECK((one != two));
  CHECK(one.size() < 8 * kMiB);
}

TEST_CASE("both attention layouts, fused experts, splits and layer counts give models that answer") {
  TempFolder folder;
  auto size_of = [&](SynthOptions options) {
    options.shape = "tiny";
    options.output = folder.file("m.gguf");
    SynthResult made = write_synth_model(options);
    CHECK((made.paths.size() > 1) == (options.split_bytes > 0));
    return logits_size(made.paths[0]);
  };
  for (const SynthOptions& options :
       {SynthOptions{.legacy_attention = true}, SynthOptions{.fused_gate_up = true},
        SynthOptions{.split_bytes = kMiB}, SynthOptions{.dense_layers = 2, .moe_layers = 3},
        SynthOptions{.dense_layers = 0, .moe_layers = 1},
        SynthOptions{.experts = BlockType::IQ2_XXS, .down = BlockType::Q6_K}}) {
    f64 size = size_of(options);
    CHECK(size > 0.3);
    CHECK(size < 3);
  }
}

TEST_CASE("the made-up tokenizer spells every byte and knows the markup of the family") {
  TempFolder folder;
  Gguf gguf = Gguf::open(write_synth_model({.shape = "tiny", .output = folder.file("tiny.gguf")}).paths[0]);
  Tokenizer tokenizer = Tokenizer::from_gguf(gguf);
  std::string all;
  for (int byte = 0; byte < 256; byte++) all += static_cast<char>(byte);
  all += "Grüße, 世界";
  std::vector<i32> ids = tokenizer.encode(all, false);
  CHECK(ids.size() == all.size());
  CHECK((tokenizer.decode(ids) == all));
  CHECK(tokenizer.vocab_size() == 512);
  CHECK(tokenizer.spec().add_bos);
  CHECK(tokenizer.is_control(*tokenizer.find("<｜User｜>")));
  CHECK(tokenizer.is_end(*tokenizer.find("<｜end▁of▁sentence｜>")));
  CHECK(tokenizer.spec().chat_template.find("<｜Assistant｜>") != std::string::npos);
}

TEST_CASE("a real vocabulary is taken over, padded to the shape's size") {
  std::string file = shared_file("data/tokenizer/deepseek.tokenizer.json.gz");
  if (file.empty()) return;
  TempFolder folder;
  SynthResult made = write_synth_model({.shape = "tiny", .output = folder.file("m.gguf"), .tokenizer = file});
  CHECK(all_notes(made).find("129280 tokens instead of 512") != std::string::npos);
  Gguf gguf = Gguf::open(made.paths[0]);
  CHECK(gguf.tensor("token_embd.weight").shape == std::vector<i64>{256, 129280});
  CHECK(gguf.need_int("deepseek2.vocab_size") == 129280);
  CHECK(gguf.get_strings("tokenizer.ggml.merges")->size() == 127741);
  CHECK(gguf.need_string("tokenizer.ggml.pre") == "deepseek-v3");
  Tokenizer tokenizer = Tokenizer::from_gguf(gguf);
  CHECK(tokenizer.spec().bos == 0);
  CHECK(*tokenizer.find("<｜User｜>") == 128803);
  CHECK(tokenizer.encode("Hello world", false).size() == 2);
}

TEST_CASE("all layers of the published shapes exist as holes on a small disk") {
  TempFolder folder;
  struct Case {
    const char* shape;
    i64 layers, moe_layers, experts, tensors;
    f64 billions;  // weights
  };
  // DeepSeek-V3 has 671 billion weights, Kimi-K2 1,026, V2-Lite 15.7; 1086 tensors is V3's published count.
  for (const Case& c : {Case{"deepseek-v3", 61, 58, 256, 1086, 671}, Case{"kimi-k2", 61, 60, 384, 1096, 1026},
                        Case{"deepseek-v2-lite", 27, 26, 64, 404, 15.7}}) {
    INFO(c.shape);
    SynthOptions options{
        .shape = c.shape, .output = folder.file("m.gguf"), .experts = BlockType::Q4_K, .hollow = true};
    SynthResult made = write_synth_model(options);
    Gguf gguf = Gguf::open(made.paths[0]);
    Hparams h = read_deepseek2(gguf);
    CHECK(h.layers == c.layers);
    CHECK(static_cast<i64>(gguf.tensors().size()) == c.tensors);
    CHECK(static_cast<f64>(made.weights) / 1e9 == doctest::Approx(c.billions).epsilon(0.01));
    ExpertTable table = table_of(gguf, h);
    CHECK(table.moe_layers() == c.moe_layers);
    CHECK(table.experts_per_layer() == c.experts);
    struct stat info {};
    REQUIRE(stat(made.paths[0].c_str(), &info) == 0);
    CHECK(info.st_blocks * 512 < 64 * kMiB);
  }
}

TEST_CASE(
    "a format that does not fit is refused when it was asked for, and replaced with a note when it was not") {
  TempFolder folder;
  SynthOptions lite{.shape = "deepseek-v2-lite",
                    .output = folder.file("m.gguf"),
                    .dense_layers = 0,
                    .moe_layers = 1,
                    .hollow = true};
  SynthResult made = write_synth_model(lite);
  Gguf gguf = Gguf::open(made.paths[0]);
  CHECK(gguf.tensor("blk.0.ffn_down_exps.weight").type == BlockType::IQ4_NL);
  CHECK(gguf.tensor("blk.0.attn_k_b.weight").type == BlockType::Q8_0);
  std::string notes = all_notes(made);
  CHECK(notes.find("ffn_down_exps is IQ4_NL instead of Q4_K") != std::string::npos);
  CHECK(notes.find("attn_k_b.weight is Q8_0 instead of Q4_K") != std::string::npos);
  lite.down = BlockType::Q4_K;
  CHECK(error_of([&] {
          write_synth_model(lite);
        }).find("'blk.0.ffn_down_exps.weight': rows of 1408 weights") != std::string::npos);
  CHECK(error_of([&] {
          write_synth_model({.shape = "gpt-5", .output = "x"});
        }).find("known are deepseek-v3, kimi-k2, deepseek-v2-lite, tiny") != std::string::npos);
  CHECK(error_of([&] {
          write_synth_model({.output = "x", .dense_layers = 0, .moe_layers = 0});
        }).find("0 dense") != std::string::npos);
}

TEST_CASE("sparse experts take no space and the model still answers") {
  TempFolder folder;
  SynthResult made = write_synth_model(
      {.shape = "tiny", .output = folder.file("m.gguf"), .experts = BlockType::F32, .sparse = true});
  struct stat info {};
  REQUIRE(stat(made.paths[0].c_str(), &info) == 0);
  CHECK(info.st_size > 25 * 1000 * 1000);
  CHECK(info.st_blocks * 512 < 8 * kMiB);
  CHECK(made.tensor_bytes - made.written_bytes == 2 * 16 * 3 * 256 * 256 * 4);
  CHECK(std::isfinite(logits_size(made.paths[0])));
}
