// stoker inspect: what a file contains and how much of it fits in this machine. Reads headers only.
#include <nlohmann/json.hpp>
#include <vector>

#include "runtime/arch/deepseek2.h"
#include "runtime/kv_cache.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/model_file/pack.h"
#include "scheduler/planner.h"
#include "tools/commands.h"
#include "tools/model_sizes.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

constexpr i64 kDefaultContext = 4096;

// Consecutive MoE layers whose experts have the same types and sizes.
struct LayerRun {
  i64 first = 0, last = 0;
  std::array<BlockType, kExpertMatrices> types{};
  i64 expert_bytes = 0;
};

std::vector<LayerRun> layer_runs(const ExpertTable& table) {
  std::vector<LayerRun> runs;
  for (const ExpertLayer& layer : table.layers()) {
    LayerRun run;
    run.first = run.last = layer.layer.value;
    for (size_t m = 0; m < run.types.size(); ++m) run.types[m] = layer.base[m].type;
    run.expert_bytes = table.expert_bytes(layer.layer);
    bool same =
        !runs.empty() && runs.back().types == run.types && runs.back().expert_bytes == run.expert_bytes;
    if (same) {
      runs.back().last = run.last;
    } else {
      runs.push_back(run);
    }
  }
  return runs;
}

std::string type_name(BlockType type) { return std::string(info(type).name); }

std::string types_line(const std::map<std::string, i64>& types) {
  std::string text;
  for (const auto& [type, bytes] : types)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", type, human_bytes(bytes));
  return text;
}

struct Fit {
  Machine machine;
  i64 beside_bytes = 0;  // weights and KV cache that are always in memory
  i64 budget_bytes = 0;  // for experts
  i64 smallest_bytes = 0, full_bytes = 0;
  i64 experts = 0, fitting = 0;
  f64 read_bytes_per_token = 0;  // from disk if routing were uniform
};

Fit fit(const Options& o, const ModelSizes& sizes, const Hparams& h, const ExpertTable& table) {
  Fit f;
  f.machine = read_machine();
  i64 weights = sizes.file_bytes() - sizes.routed_bytes - sizes.mtp_bytes;
  i64 kv = KvCache::bytes_needed(h, kDefaultContext, CacheType::F16);
  f.beside_bytes = weights + kv;
  f.budget_bytes = o.ram.bytes > 0 ? o.ram.bytes : default_expert_budget(f.machine, weights, kv);
  f.experts = table.moe_layers() * table.experts_per_layer();
  if (f.experts == 0) return f;
  PlanRequest request;
  request.ram_bytes = f.budget_bytes;
  f.smallest_bytes = smallest_budget(table, request.alignment);
  f.full_bytes = full_budget(table, request.alignment);
  if (f.budget_bytes >= f.smallest_bytes) f.fitting = make_plan(table, request).total_slots();
  f64 missing = 1 - static_cast<f64>(f.fitting) / static_cast<f64>(f.experts);
  f64 per_token =
      static_cast<f64>(table.total_bytes()) * static_cast<f64>(h.top_k) / static_cast<f64>(h.experts);
  f.read_bytes_per_token = missing * per_token;
  return f;
}

nlohmann::ordered_json to_json(const Options& o, const Gguf& gguf, const Hparams& h, const ModelSizes& s,
                               const ExpertTable& table, const Fit& f) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const LayerRun& run : layer_runs(table)) {
    layers.push_back({{"first_layer", run.first},
                      {"last_layer", run.last},
                      {"gate_type", type_name(run.types[0])},
                      {"up_type", type_name(run.types[1])},
                      {"down_type", type_name(run.types[2])},
                      {"expert_bytes", run.expert_bytes}});
  }
  return {
      {"model", o.model},
      {"name", h.name},
      {"architecture", h.architecture},
      {"files", gguf.files().size()},
      {"packed", is_pack(gguf)},
      {"tensor_bytes", s.file_bytes()},
      {"parameters", s.parameters},
      {"layers", h.layers},
      {"dense_layers", h.dense_layers},
      {"mtp_layers", h.mtp_layers},
      {"hidden", h.hidden},
      {"vocab", h.vocab},
      {"trained_context_tokens", h.trained_context},
      {"heads", h.heads},
      {"q_lora", h.q_lora},
      {"kv_latent", h.latent},
      {"experts_per_layer", h.experts},
      {"experts_per_token", h.top_k},
      {"shared_experts", h.shared_experts},
      {"expert_ffn", h.expert_ffn},
      {"expert_groups", h.groups},
      {"expert_groups_used", h.groups_used},
      {"resident_bytes", s.file_bytes() - s.routed_bytes - s.shared_bytes - s.mtp_bytes},
      {"resident_bytes_by_type", s.resident_types},
      {"shared_bytes", s.shared_bytes},
      {"shared_bytes_by_type", s.shared_types},
      {"routed_bytes", s.routed_bytes},
      {"routed_bytes_by_type", s.routed_types},
      {"mtp_bytes", s.mtp_bytes},
      {"expert_layers", layers},
      {"kv_bytes_per_token", KvCache::bytes_needed(h, kDefaultContext, CacheType::F16) / kDefaultContext},
      {"available_memory_bytes", f.machine.available_bytes},
      {"expert_budget_bytes", f.budget_bytes},
      {"smallest_expert_budget_bytes", f.smallest_bytes},
      {"full_expert_budget_bytes", f.full_bytes},
      {"experts", f.experts},
      {"experts_that_fit", f.fitting},
      {"uniform_read_bytes_per_token", static_cast<i64>(f.read_bytes_per_token)},
  };
}

std::string shape_text(const Gguf& gguf, const Hparams& h, const ModelSizes& s) {
  std::string text = fmt::format("{}\n", h.name);
  text += fmt::format("architecture   {}, {} parameters, {} in {} file{}{}\n", h.architecture,
                      human_parameters(s.parameters), human_bytes(s.file_bytes()), gguf.files().size(),
                      gguf.files().size() == 1 ? "" : "s", is_pack(gguf) ? ", packed" : "");
  text += fmt::format(
      "layers         {}: {} dense, {} with experts{}\n", h.layers, h.dense_layers, h.moe_layers(),
      h.mtp_layers > 0 ? fmt::format(" (and {} for multi-token prediction, not used)", h.mtp_layers) : "");
  text += fmt::format("width          hidden {}, vocabulary {}, trained context {}\n", h.hidden, h.vocab,
                      h.trained_context);
  text += fmt::format("attention      {} heads, query {}, latent {}, head {} + {} rotary, value {}\n",
                      h.heads, h.q_lora > 0 ? fmt::format("through {}", h.q_lora) : "direct", h.latent,
                      h.nope, h.rope, h.v);
  if (h.experts > 0) {
    text += fmt::format("experts        {} of {} per token, {} shared, width {}, {} gate{}\n", h.top_k,
                        h.experts, h.shared_experts, h.expert_ffn, h.expert_sigmoid ? "sigmoid" : "softmax",
                        h.groups > 1 ? fmt::format(", best {} of {} groups", h.groups_used, h.groups) : "");
  }
  return text;
}

std::string bytes_text(const ModelSizes& s, const ExpertTable& table) {
  i64 resident = s.file_bytes() - s.routed_bytes - s.shared_bytes - s.mtp_bytes;
  std::string text = "\nbytes\n";
  auto line = [&](std::string_view name, i64 bytes, const std::map<std::string, i64>& types) {
    text += fmt::format("  {:<12}{:>10}   {}\n", name, human_bytes(bytes), types_line(types));
  };
  line("resident", resident, s.resident_types);
  line("shared", s.shared_bytes, s.shared_types);
  line("routed", s.routed_bytes, s.routed_types);
  if (s.mtp_bytes > 0) text += fmt::format("  {:<12}{:>10}   not read\n", "MTP", human_bytes(s.mtp_bytes));
  text += "\none expert (gate, up, down)\n";
  for (const LayerRun& run : layer_runs(table)) {
    std::string layers = run.first == run.last ? fmt::format("layer {}", run.first)
                                               : fmt::format("layers {}-{}", run.first, run.last);
    text += fmt::format("  {:<14}{:>10}   {} {} {}\n", layers, human_bytes(run.expert_bytes),
                        type_name(run.types[0]), type_name(run.types[1]), type_name(run.types[2]));
  }
  return text;
}

std::string fit_text(const Options& o, const Fit& f) {
  std::string text = "\nthis machine\n";
  auto line = [&](std::string_view name, std::string_view value, const std::string& remark) {
    text += fmt::format("  {:<18}{:>10}   {}\n", name, value, remark);
  };
  line("memory", human_bytes(f.machine.available_bytes),
       fmt::format("free of {} ({})", human_bytes(f.machine.total_ram_bytes), f.machine.limited_by));
  line("always in memory", human_bytes(f.beside_bytes),
       fmt::format("with the KV cache of -c {}, where no device has any of it", kDefaultContext));
  if (f.experts == 0) return text;
  line(o.ram.bytes > 0 ? "--ram" : "default --ram", human_bytes(f.budget_bytes),
       fmt::format("for experts; {} is the least, {} holds all", human_bytes(f.smallest_bytes),
                   human_bytes(f.full_bytes)));
  if (f.fitting == 0) {
    line("experts that fit", "none", "too small to run");
    return text;
  }
  line("experts that fit", fmt::format("{}", f.fitting),
       fmt::format("{:.1f} % of {}", 100 * static_cast<f64>(f.fitting) / static_cast<f64>(f.experts),
                   f.experts));
  line("read per token", human_bytes(static_cast<i64>(f.read_bytes_per_token)),
       "if all experts were equally likely");
  return text;
}

}  // namespace

int inspect_command(const Options& o) {
  Gguf gguf = Gguf::open(o.model);
  Hparams h = read_deepseek2(gguf);
  ModelSizes sizes = model_sizes(gguf, h);
  ExpertTable table;
  if (h.moe_layers() > 0) {
    table = ExpertTable::from_gguf(gguf, h.expert_shape());
  }
  Fit fitting = fit(o, sizes, h, table);
  if (o.json) {
    print(to_json(o, gguf, h, sizes, table, fitting).dump(2) + "\n");
  } else {
    print(shape_text(gguf, h, sizes) + bytes_text(sizes, table) + fit_text(o, fitting));
  }
  return 0;
}

}  // namespace stoker
