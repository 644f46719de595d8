// The layouts that files of this family come in hold the same model; what is missing or misshapen is found at load.
#include "runtime/weights.h"

#include <doctest/doctest.h>

#include "kernels/format/f16.h"
#include "tests/support/compare.h"
#include "tests/support/edited_model.h"
#include "tests/support/model_run.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace stoker {
namespace {

using test::EditedModel;
using test::TinyModel;

constexpr i64 kVocab = 512;

// The logits of a fixed text, exact and default, in one chunk and token by token.
std::vector<f32> answer(const std::string& path) {
  std::vector<f32> all;
  std::vector<i32> tokens = test::some_tokens(24, kVocab, 5);
  for (bool exact : {true, false}) {
    EngineOptions options = test::small_engine(path);
    options.exact = exact;
    Engine engine(options);
    for (bool generated : {false, true}) {
      std::vector<f32> logits =
          generated ? test::generated_logits_of(engine, tokens) : test::logits_of(engine, tokens, 24);
      all.insert(all.end(), logits.begin(), logits.end());
    }
  }
  return all;
}

TinyModel legacy_model(BlockType type) {
  SynthOptions options = test::tiny_options(type);
  options.legacy_attention = true;
  return TinyModel(options);
}

std::string blk(i64 layer, const std::string& rest) { return "blk." + std::to_string(layer) + "." + rest; }

std::string complaint(const EditedModel& model, const test::TempFolder& folder) {
  try {
    Engine engine(test::small_engine(model.write(folder.file("wrong.gguf"))));
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// kv_b as converters split it (reference 1.3): k_b [heads][latent][nope] is transposed, v_b [heads][v][latent] is not.
struct SplitKvB {
  std::vector<f32> k, v;
};
SplitKvB split(const std::vector<f32>& kv_b, const Hparams& h) {
  SplitKvB result;
  auto at = [&](i64 head, i64 row, i64 r) {
    return kv_b[static_cast<size_t>((head * (h.nope + h.v) + row) * h.latent + r)];
  };
  for (i64 head = 0; head < h.heads; head++)
    for (i64 r = 0; r < h.latent; r++)
      for (i64 d = 0; d < h.nope; d++) result.k.push_back(at(head, d, r));
  for (i64 head = 0; head < h.heads; head++)
    for (i64 row = 0; row < h.v; row++)
      for (i64 r = 0; r < h.latent; r++) result.v.push_back(at(head, h.nope + row, r));
  return result;
}

Hparams hparams_of(const std::string& path) { return Engine(test::small_engine(path)).hparams(); }

// Adds k_b and v_b to every layer of an F32 model that has kv_b, in three dimensions or (older files) in two.
void add_latent_tensors(EditedModel& model, const Hparams& h, bool three_dimensions) {
  for (i64 i = 0; i < h.layers; i++) {
    SplitKvB parts = split(test::floats_of(model.tensor(blk(i, "attn_kv_b.weight")).bytes), h);
    std::vector<i64> k_shape = {h.nope, h.latent * h.heads}, v_shape = {h.latent, h.v * h.heads};
    if (three_dimensions) {
      k_shape = {h.nope, h.latent, h.heads};
      v_shape = {h.latent, h.v, h.heads};
    }
    model.add(blk(i, "attn_k_b.weight"), {BlockType::F32, k_shape, test::bytes_of(parts.k)});
    model.add(blk(i, "attn_v_b.weight"), {BlockType::F32, v_shape, test::bytes_of(parts.v)});
  }
}

}  // namespace

TEST_CASE("an edited model that was not edited is the same model") {
  TinyModel tiny(test::tiny_options(BlockType::Q8_0));
  EditedModel model(tiny.path());
  CHECK(test::difference(answer(model.write(tiny.folder().file("copy.gguf"))), answer(tiny.path()), kVocab) == "");
}

TEST_CASE("kv_b, k_b with v_b, and files with all three give the same logits") {
  TinyModel tiny = legacy_model(BlockType::F32);
  Hparams h = hparams_of(tiny.path());
  std::vector<f32> want = answer(tiny.path());
  for (bool three_dimensions : {true, false}) {
    CAPTURE(three_dimensions);
    EditedModel model(tiny.path());
    add_latent_tensors(model, h, three_dimensions);
    CHECK(test::difference(answer(model.write(tiny.folder().file("all.gguf"))), want, kVocab) == "");
    for (i64 i = 0; i < h.layers; i++) model.remove(blk(i, "attn_kv_b.weight"));
    CHECK(test::difference(answer(model.write(tiny.folder().file("split.gguf"))), want, kVocab) == "");
  }
}

TEST_CASE("k_b derived from blocks keeps every bit that f16 has, and v_b all of them") {
  TinyModel tiny = legacy_model(BlockType::Q8_0);
  Hparams h = hparams_of(tiny.path());
  EditedModel derived(tiny.path()), given(tiny.path());
  for (i64 i = 0; i < h.layers; i++) {
    const EditedModel::Tensor& kv_b = derived.tensor(blk(i, "attn_kv_b.weight"));
    REQUIRE(kv_b.type == BlockType::Q8_0);
    // Blocks of 32: an f16 scale, then 32 signed bytes.
    std::vector<f32> floats;
    for (size_t b = 0; b < kv_b.bytes.size(); b += 34) {
      u16 scale;
      std::memcpy(&scale, kv_b.bytes.data() + b, 2);
      for (size_t j = 0; j < 32; j++) floats.push_back(f16_to_f32(scale) * static_cast<i8>(kv_b.bytes[b + 2 + j]));
    }
    std::string k;
    for (f32 value : split(floats, h).k) {
      u16 half = f32_to_f16(value);
      k.append(reinterpret_cast<const char*>(&half), 2);
    }
    std::string v;
    size_t row = static_cast<size_t>(h.latent / 32 * 34);
    for (i64 head = 0; head < h.heads; head++)
      v += kv_b.bytes.substr(static_cast<size_t>(head * (h.nope + h.v) + h.nope) * row, static_cast<size_t>(h.v) * row);
    given.add(blk(i, "attn_k_b.weight"), {BlockType::F16, {h.nope, h.latent, h.heads}, k});
    given.add(blk(i, "attn_v_b.weight"), {BlockType::Q8_0, {h.latent, h.v, h.heads}, v});
    given.remove(blk(i, "attn_kv_b.weight"));
  }
  CHECK(test::difference(answer(given.write(tiny.folder().file("given.gguf"))), answer(tiny.path()), kVocab) == "");
}

TEST_CASE("gate and up fused in one tensor, gate rows first, give the same logits") {
  for (BlockType type : {BlockType::Q4_K, BlockType::IQ2_XXS}) {
    TinyModel tiny(test::tiny_options(type));
    Hparams h = hparams_of(tiny.path());
    EditedModel model(tiny.path());
    for (i64 i = h.dense_layers; i < h.layers; i++) {
      const EditedModel::Tensor &gate = model.tensor(blk(i, "ffn_gate_exps.weight")), &up = model.tensor(blk(i, "ffn_up_exps.weight"));
      size_t bytes = gate.bytes.size() / static_cast<size_t>(h.experts);
      std::string fused;
      for (size_t e = 0; e < static_cast<size_t>(h.experts); e++)
        fused += gate.bytes.substr(e * bytes, bytes) + up.bytes.substr(e * bytes, bytes);
      model.add(blk(i, "ffn_gate_up_exps.weight"), {gate.type, {h.hidden, 2 * h.expert_ffn, h.experts}, fused});
      model.remove(blk(i, "ffn_gate_exps.weight"));
      model.remove(blk(i, "ffn_up_exps.weight"));
    }
    CHECK(test::difference(answer(model.write(tiny.folder().file("fused.gguf"))), answer(tiny.path()), kVocab) == "");
  }
}

TEST_CASE("without output.weight the embedding table is the output matrix") {
  TinyModel tiny;
  EditedModel model(tiny.path());
  model.add("output.weight", model.tensor("token_embd.weight"));
  std::vector<f32> want = answer(model.write(tiny.folder().file("copied.gguf")));
  model.remove("output.weight");
  CHECK(test::difference(answer(model.write(tiny.folder().file("tied.gguf"))), want, kVocab) == "");
  CHECK(test::first_difference(answer(tiny.path()), want) >= 0);
}

TEST_CASE("a model in shards gives the same logits") {
  TinyModel tiny;
  EditedModel model(tiny.path());
  std::string first = model.write(tiny.folder().file("split.gguf"), 200 * kKiB);
  REQUIRE(Gguf::open(first).files().size() > 3);
  CHECK(test::difference(answer(first), answer(tiny.path()), kVocab) == "");
}

TEST_CASE("every tensor that is missing is named, with the file") {
  for (bool legacy : {false, true}) {
    SynthOptions options = test::tiny_options(BlockType::Q4_K);
    options.moe_layers = 1;
    options.legacy_attention = legacy;
    TinyModel tiny(options);
    EditedModel whole(tiny.path());
    for (const std::string& name : whole.names()) {
      if (name == "output.weight" || name.ends_with("exp_probs_b.bias")) continue;  // optional
      CAPTURE(name);
      EditedModel model = whole;
      model.remove(name);
      std::string text = complaint(model, tiny.folder());
      CHECK_MESSAGE(mentions(text, "'" + name + "'"), text);
      CHECK_MESSAGE(mentions(text, "wrong.gguf"), text);
    }
  }
}

TEST_CASE("every tensor of a wrong shape is named, with the file") {
  SynthOptions options = test::tiny_options(BlockType::Q8_0);
  options.moe_layers = 1;
  TinyModel tiny(options);
  EditedModel whole(tiny.path());
  for (const std::string& name : whole.names()) {
    CAPTURE(name);
    EditedModel model = whole;
    EditedModel::Tensor& tensor = model.tensor(name);
    // One row less, or a shorter vector. How many rows the embedding table has is for it to say: there they are shorter.
    if (tensor.shape.size() == 1 || name == "token_embd.weight")
      tensor.shape[0] -= info(tensor.type).block_weights;
    else
      tensor.shape[1]--;
    i64 rows = 1;
    for (size_t i = 1; i < tensor.shape.size(); i++) rows *= tensor.shape[i];
    tensor.bytes.resize(static_cast<size_t>(rows * row_bytes(tensor.type, tensor.shape[0])));
    std::string text = complaint(model, tiny.folder());
    CHECK_MESSAGE(mentions(text, name), text);
    CHECK_MESSAGE(mentions(text, "wrong.gguf"), text);
  }
}

TEST_CASE("loading can be given up") {
  TinyModel tiny;
  for (std::string_view stage : {"weights", "experts"}) {
    i64 calls = 0;
    auto give_up = [&](std::string_view now, i64 done, i64 total) {
      CHECK(done <= total);
      calls += now == stage;
      return now != stage;
    };
    CHECK_THROWS_AS(Engine(test::small_engine(tiny.path()), give_up), Interrupted);
    CHECK(calls > 0);
  }
}

TEST_CASE("loading reports all bytes, in order") {
  TinyModel tiny;
  std::string stages;
  i64 last_done = 0, last_total = 0;
  Engine engine(test::small_engine(tiny.path()), [&](std::string_view stage, i64 done, i64 total) {
    if (!stages.ends_with(stage)) {
      CHECK(last_done == last_total);
      stages += std::string(stage);
      last_done = 0;
    }
    CHECK(done >= last_done);
    last_done = done;
    last_total = total;
    return true;
  });
  CHECK(stages == "weightsexperts");
  CHECK(last_done == last_total);
}

}  // namespace stoker
