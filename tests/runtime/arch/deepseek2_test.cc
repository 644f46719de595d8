#include "runtime/arch/deepseek2.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "kernels/base/error.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/gguf_writer.h"
#include "tests/support/temp_folder.h"

namespace stoker {
namespace {

using Values = std::vector<std::pair<std::string, GgufValue>>;

// The keys of a DeepSeek-V3 file as converters of 2024 wrote them.
Values v3() {
  return {{"general.architecture", gguf_string("deepseek2")},
          {"general.name", gguf_string("DeepSeek V3")},
          {"deepseek2.block_count", gguf_u32(61)},
          {"deepseek2.context_length", gguf_u32(163840)},
          {"deepseek2.embedding_length", gguf_u32(7168)},
          {"deepseek2.feed_forward_length", gguf_u32(18432)},
          {"deepseek2.attention.head_count", gguf_u32(128)},
          {"deepseek2.attention.head_count_kv", gguf_u32(128)},
          {"deepseek2.attention.layer_norm_rms_epsilon", gguf_f32(1e-6f)},
          {"deepseek2.attention.q_lora_rank", gguf_u32(1536)},
          {"deepseek2.attention.kv_lora_rank", gguf_u32(512)},
          {"deepseek2.attention.key_length", gguf_u32(192)},
          {"deepseek2.attention.value_length", gguf_u32(128)},
          {"deepseek2.rope.dimension_count", gguf_u32(64)},
          {"deepseek2.rope.freq_base", gguf_f32(10000)},
          {"deepseek2.rope.scaling.type", gguf_string("yarn")},
          {"deepseek2.rope.scaling.factor", gguf_f32(40)},
          {"deepseek2.rope.scaling.original_context_length", gguf_u32(4096)},
          {"deepseek2.rope.scaling.yarn_log_multiplier", gguf_f32(0.1f)},
          {"deepseek2.leading_dense_block_count", gguf_u32(3)},
          {"deepseek2.expert_count", gguf_u32(256)},
          {"deepseek2.expert_used_count", gguf_u32(8)},
          {"deepseek2.expert_shared_count", gguf_u32(1)},
          {"deepseek2.expert_feed_forward_length", gguf_u32(2048)},
          {"deepseek2.expert_weights_scale", gguf_f32(2.5f)},
          {"deepseek2.expert_weights_norm", gguf_bool(true)},
          {"deepseek2.expert_gating_func", gguf_u32(2)}};
}

Values with(Values values, const std::string& key, GgufValue value) {
  for (auto& pair : values)
    if (pair.first == key) {
      pair.second = std::move(value);
      return values;
    }
  values.emplace_back(key, std::move(value));
  return values;
}

Values without(Values values, const std::string& key) {
  std::erase_if(values, [&](const auto& pair) { return pair.first == key; });
  return values;
}

// A header and an embedding table that is a hole in the file.
Hparams read(const Values& values) {
  test::TempFolder folder;
  GgufWriter writer;
  for (const auto& [key, value] : values) writer.set(key, value);
  writer.add({.name = "token_embd.weight", .type = BlockType::F16, .shape = {7168, 16}, .fill = {}});
  writer.write(folder.file("model.gguf"));
  return read_deepseek2(Gguf::open(folder.file("model.gguf")));
}

std::string complaint(const Values& values) {
  try {
    read(values);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::string complaint(const std::string& key, GgufValue value) {
  return complaint(with(v3(), "deepseek2." + key, std::move(value)));
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the keys of DeepSeek-V3 become its shape") {
  Hparams h = read(v3());
  CHECK(h.name == "DeepSeek V3");
  CHECK(h.layers == 61);
  CHECK(h.dense_layers == 3);
  CHECK(h.moe_layers() == 58);
  CHECK(h.hidden == 7168);
  CHECK(h.dense_ffn == 18432);
  CHECK(h.vocab == 16);
  CHECK(h.heads == 128);
  CHECK(h.q_lora == 1536);
  CHECK(h.latent == 512);
  CHECK(h.nope == 128);
  CHECK(h.rope == 64);
  CHECK(h.v == 128);
  CHECK(h.cache_row() == 576);
  CHECK(h.experts == 256);
  CHECK(h.top_k == 8);
  CHECK(h.shared_experts == 1);
  CHECK(h.expert_ffn == 2048);
  CHECK(h.expert_scale == 2.5f);
  CHECK(h.expert_normalise);
  CHECK(h.expert_sigmoid);
  CHECK(h.groups == 1);
  CHECK(h.mtp_layers == 0);
  CHECK(h.rms_epsilon == 1e-6f);
}

TEST_CASE("files with the *_mla keys present the cache as multi-query attention and mean the same") {
  Values values = with(v3(), "deepseek2.attention.head_count_kv", gguf_u32(1));
  values = with(values, "deepseek2.attention.key_length", gguf_u32(576));
  values = with(values, "deepseek2.attention.value_length", gguf_u32(512));
  values = with(values, "deepseek2.attention.key_length_mla", gguf_u32(192));
  values = with(values, "deepseek2.attention.value_length_mla", gguf_u32(128));
  Hparams h = read(values);
  CHECK(h.nope == 128);
  CHECK(h.v == 128);
  CHECK(h.attention_scale == read(v3()).attention_scale);  // over 192, never 576
}

TEST_CASE("groups, MTP layers and the kind of gate come from the file") {
  Values values = with(v3(), "deepseek2.expert_group_count", gguf_u32(8));
  values = with(values, "deepseek2.expert_group_used_count", gguf_u32(4));
  values = with(values, "deepseek2.nextn_predict_layers", gguf_u32(1));
  Hparams h = read(values);
  CHECK(h.groups == 8);
  CHECK(h.groups_used == 4);
  CHECK(!h.group_score_is_max);
  CHECK(h.mtp_layers == 1);
  CHECK(h.layers == 60);

  h = read(without(values, "deepseek2.expert_gating_func"));  // V2: absent means softmax
  CHECK(!h.expert_sigmoid);
  CHECK(h.group_score_is_max);
}

TEST_CASE("the attention scale has YaRN's magnitude as the family defines it") {
  CHECK(read(v3()).attention_scale == doctest::Approx(0.135234).epsilon(1e-5));
  Values v2 = with(v3(), "deepseek2.rope.scaling.yarn_log_multiplier", gguf_f32(0.0707f));
  CHECK(read(v2).attention_scale == doctest::Approx(0.114721).epsilon(1e-5));
  Values k2 = with(with(v3(), "deepseek2.rope.freq_base", gguf_f32(50000)), "deepseek2.rope.scaling.factor", gguf_f32(32));
  CHECK(read(k2).attention_scale == doctest::Approx(0.130861).epsilon(1e-5));
  Values none = without(without(v3(), "deepseek2.rope.scaling.type"), "deepseek2.rope.scaling.factor");
  CHECK(read(none).attention_scale == doctest::Approx(1 / std::sqrt(192.0)).epsilon(1e-6));
}

TEST_CASE("YaRN keeps V3's first eleven pairs, stretches those from 23 on and ramps between") {
  std::vector<f32> got = yarn_frequencies({.dim = 64, .base = 10000, .factor = 40, .original_context = 4096});
  REQUIRE(got.size() == 32);
  for (i64 i = 0; i < 32; i++) {
    CAPTURE(i);
    f64 plain = std::pow(10000, -static_cast<f64>(i) / 32);
    f64 ramp = i <= 10 ? 0 : i >= 23 ? 1 : static_cast<f64>(i - 10) / 13;
    CHECK(got[static_cast<size_t>(i)] == doctest::Approx(plain * (1 - ramp) + plain / 40 * ramp).epsilon(1e-6));
  }
}

TEST_CASE("without a factor frequencies are those of plain RoPE") {
  std::vector<f32> got = yarn_frequencies({.dim = 8, .base = 10000});
  REQUIRE(got.size() == 4);
  for (i64 i = 0; i < 4; i++) CHECK(got[static_cast<size_t>(i)] == doctest::Approx(std::pow(10.0, -i)).epsilon(1e-6));
}

TEST_CASE("linear scaling divides all frequencies") {
  Values values = with(v3(), "deepseek2.rope.scaling.type", gguf_string("linear"));
  CHECK(read(values).rope_frequencies[0] == doctest::Approx(1 / 40.0).epsilon(1e-6));
}

TEST_CASE("another architecture is refused by name") {
  std::string text = complaint(with(v3(), "general.architecture", gguf_string("llama")));
  CHECK(mentions(text, "'llama'"));
  CHECK(mentions(text, "deepseek2"));
  CHECK(mentions(text, "model.gguf"));
}

TEST_CASE("a missing key is named") {
  for (std::string key : {"block_count", "embedding_length", "feed_forward_length", "attention.head_count",
                          "attention.kv_lora_rank", "attention.key_length", "attention.value_length",
                          "rope.dimension_count", "expert_count", "expert_used_count", "expert_feed_forward_length"}) {
    CAPTURE(key);
    CHECK(mentions(complaint(without(v3(), "deepseek2." + key)), "deepseek2." + key));
  }
  CHECK(mentions(complaint(without(v3(), "general.architecture")), "general.architecture"));
}

TEST_CASE("values that make no sense are refused with their key") {
  struct Case {
    std::string key;
    GgufValue value;
  };
  const u32 huge = 0xffffffffu;
  std::vector<Case> cases;
  for (std::string key : {"block_count", "embedding_length", "feed_forward_length", "attention.head_count",
                          "attention.kv_lora_rank", "attention.key_length", "attention.value_length",
                          "rope.dimension_count", "expert_count", "expert_used_count", "expert_feed_forward_length"})
    for (u32 value : {0u, huge}) cases.push_back({key, gguf_u32(value)});
  cases.push_back({"block_count", gguf_i32(-1)});
  cases.push_back({"block_count", gguf_string("sixty")});
  cases.push_back({"leading_dense_block_count", gguf_u32(62)});
  cases.push_back({"nextn_predict_layers", gguf_u32(61)});
  cases.push_back({"expert_used_count", gguf_u32(257)});
  cases.push_back({"expert_group_count", gguf_u32(257)});
  cases.push_back({"expert_group_used_count", gguf_u32(2)});  // of one group
  cases.push_back({"expert_gating_func", gguf_u32(3)});
  cases.push_back({"attention.q_lora_rank", gguf_u32(huge)});
  cases.push_back({"expert_shared_count", gguf_u32(huge)});
  cases.push_back({"rope.dimension_count", gguf_u32(63)});
  cases.push_back({"attention.key_length", gguf_u32(64)});  // nothing but the rotated part
  for (f32 bad : {std::numeric_limits<f32>::quiet_NaN(), std::numeric_limits<f32>::infinity()})
    for (std::string key : {"attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor",
                            "rope.scaling.original_context_length", "rope.scaling.yarn_log_multiplier",
                            "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "expert_weights_scale"})
      cases.push_back({key, gguf_f32(bad)});
  cases.push_back({"rope.freq_base", gguf_f32(-1)});
  cases.push_back({"rope.scaling.factor", gguf_f32(0)});
  cases.push_back({"rope.scaling.original_context_length", gguf_f32(-4096)});
  cases.push_back({"rope.scaling.yarn_beta_fast", gguf_f32(0)});
  cases.push_back({"attention.layer_norm_rms_epsilon", gguf_f32(-1)});
  for (Case& c : cases) {
    CAPTURE(c.key);
    std::string text = complaint(c.key, c.value);
    CHECK_MESSAGE(mentions(text, "model.gguf"), text);
    CHECK_MESSAGE(mentions(text, c.key), text);
  }
}

TEST_CASE("groups that experts do not fill are refused") {
  Values values = with(v3(), "deepseek2.expert_group_count", gguf_u32(7));
  CHECK(mentions(complaint(values), "256 experts do not form 7 groups"));
  // One group of two experts cannot give eight.
  values = with(with(v3(), "deepseek2.expert_group_count", gguf_u32(128)), "deepseek2.expert_group_used_count", gguf_u32(1));
  CHECK(mentions(complaint(values), "expert_group_used_count"));
}

TEST_CASE("an unknown kind of rope scaling is refused") {
  CHECK(mentions(complaint("rope.scaling.type", gguf_string("longrope")), "longrope"));
}

}  // namespace stoker
