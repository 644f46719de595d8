// Hparams: the shape of a model as its file states it. Plain data, filled by arch/ and immutable afterwards.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/types.h"
#include "scheduler/model_file/expert_table.h"

namespace stoker {

struct Hparams {
  std::string name;          // general.name, or the file's name
  std::string architecture;  // "deepseek2"
  i64 layers = 0;            // transformer blocks in the pass (MTP layers not counted)
  i64 dense_layers = 0;      // the first ones, without experts
  i64 hidden = 0;
  i64 dense_ffn = 0;
  i64 vocab = 0;
  i64 trained_context = 0;
  f32 rms_epsilon = 1e-6f;

  // Multi-head latent attention. A head's query and key are [nope | rope], its value is `v` long.
  i64 heads = 0;
  i64 q_lora = 0;  // 0: the query is projected directly (V2-Lite)
  i64 latent = 0;  // kv_lora_rank
  i64 nope = 0, rope = 0, v = 0;
  f32 attention_scale = 0;             // YaRN's magnitude included
  std::vector<f32> rope_frequencies;   // [rope / 2] radians per position, YaRN applied

  // Mixture of experts.
  i64 experts = 0, top_k = 0, shared_experts = 0;
  i64 expert_ffn = 0;
  f32 expert_scale = 1;
  bool expert_normalise = false;
  bool expert_sigmoid = false;
  i64 groups = 1, groups_used = 1;  // 1: no group limit
  bool group_score_is_max = false;  // DeepSeek-V2; else the sum of a group's two best (V3)

  i64 mtp_layers = 0;  // in the file, left out of the pass

  i64 key() const { return nope + rope; }
  i64 moe_layers() const { return layers - dense_layers; }
  i64 widest_resident_ffn() const { return dense_ffn > shared_experts * expert_ffn ? dense_ffn : shared_experts * expert_ffn; }
  i64 cache_row() const { return latent + rope; }  // values per token and layer in the KV cache
  ExpertTable::Shape expert_shape() const {
    return {.first_layer = dense_layers, .end_layer = layers, .experts = experts, .top_k = top_k, .hidden = hidden,
            .ffn = expert_ffn};
  }
};

}  // namespace stoker
