#include "tools/sim_setup.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "kernels/base/check.h"
#include "kernels/base/error.h"
#include "runtime/arch/deepseek2.h"
#include "runtime/forward.h"
#include "runtime/piece_size.h"
#include "runtime/recording_router.h"
#include "runtime/synth/model_shape.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/planner.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/popularity_file.h"
#include "scheduler/sim/bounds.h"
#include "scheduler/sim/simulator.h"
#include "scheduler/trace/open_routing.h"
#include "tools/machines.h"
#include "tools/model_sizes.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

constexpr int kCores = 12;  // whose scratch counts, of a machine that does not say; it is small
constexpr i64 kCacheValueBytes = 2;  // of the KV cache: f16

BlockType type_or(const std::string& name, BlockType otherwise) {
  return name.empty() ? otherwise : find_block_type(name)->type;  // checked with the options
}

i64 bytes_of(BlockType type, i64 weights) {
  const BlockTypeInfo& format = info(type);
  return weights / format.block_weights * format.block_bytes;
}

SimShape sim_shape(const ModelShape& m, const Options& o) {
  SimShape s{.dense_layers = m.dense_layers, .moe_layers = m.moe_layers, .experts = m.experts, .top_k = m.top_k,
             .hidden = m.hidden, .expert_ffn = m.expert_ffn, .packed = o.packed};
  if (o.dense_layers >= 0) s.dense_layers = o.dense_layers;
  if (o.moe_layers >= 0) s.moe_layers = o.moe_layers;
  if (s.moe_layers == 0) fail("--moe-layers 0 leaves no experts to simulate");
  s.wide = type_or(o.expert_type, s.wide);
  s.down = type_or(o.down_type, s.wide);
  return s;
}

// Every head compares its query with each position's latent and rotated key, and adds up their latents.
i64 attention_flops(i64 heads, i64 latent, i64 rope, i64 context) {
  return 2 * heads * context * (latent + rope + latent);
}

// A head's query as it is and in latent space, and its sum of latents.
i64 half_heads_bytes(i64 heads, i64 nope, i64 rope, i64 latent) {
  return heads / 2 * (nope + rope + 2 * latent) * i64{sizeof(f32)};
}

i64 attention_weights(const ModelShape& m) {
  i64 query = m.heads * (m.nope + m.rope);
  i64 q = m.q_lora == 0 ? m.hidden * query : m.hidden * m.q_lora + m.q_lora * query;
  i64 kv = m.hidden * (m.latent + m.rope) + m.heads * m.latent * (m.nope + m.v);
  return q + kv + m.heads * m.v * m.hidden;
}

SimResident sim_resident(const ModelShape& m, const SimShape& shape, const Options& o) {
  BlockType type = type_or(o.attention_type, BlockType::Q8_0);
  i64 kv = o.context * (m.latent + m.rope) * kCacheValueBytes;
  return {.attention_bytes = bytes_of(type, attention_weights(m)),
          .dense_ffn_bytes = bytes_of(type, 3 * m.hidden * m.dense_ffn),
          .router_bytes = m.hidden * m.experts * i64{sizeof(f32)},
          .gate_copy_bytes = bytes_of(BlockType::Q8_0, m.hidden * m.experts),
          .shared_bytes = bytes_of(type, 3 * m.hidden * m.expert_ffn * m.shared_experts),
          .head_rows = m.vocab,
          .head_row_bytes = bytes_of(type, m.hidden),
          .kv_bytes = kv * (shape.dense_layers + shape.moe_layers),
          .attention_flops = attention_flops(m.heads, m.latent, m.rope, o.context),
          .half_heads_bytes = half_heads_bytes(m.heads, m.nope, m.rope, m.latent),
          .type = type,
          .hidden_bytes = 2 * m.hidden * i64{sizeof(f32)},
          .dense_layers = shape.dense_layers,
          .moe_layers = shape.moe_layers};
}

// The format that most of these bytes have.
BlockType main_type(const std::map<std::string, i64>& bytes_by_type) {
  auto most = std::max_element(bytes_by_type.begin(), bytes_by_type.end(),
                               [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == bytes_by_type.end() ? BlockType::F32 : find_block_type(most->first)->type;
}

// Of a file: layers of a kind are alike, which the sums do not mind.
SimResident file_resident(const ModelSizes& sizes, const Hparams& h, i64 context) {
  i64 kv = context * h.cache_row() * kCacheValueBytes;
  i64 routers = h.moe_layers() * h.hidden * h.experts * i64{sizeof(f32)};
  i64 dense = std::max<i64>(0, sizes.dense_bytes - routers);
  i64 head = (sizes.head_bytes > 0 ? sizes.head_bytes : sizes.embedding_bytes) + (h.dense_layers > 0 ? 0 : dense);
  return {.attention_bytes = sizes.attention_bytes / h.layers,
          .dense_ffn_bytes = h.dense_layers > 0 ? dense / h.dense_layers : 0,
          .router_bytes = routers / h.moe_layers(),
          .gate_copy_bytes = bytes_of(BlockType::Q8_0, h.hidden * h.experts),
          .shared_bytes = sizes.shared_bytes / h.moe_layers(),
          .head_rows = h.vocab,
          .head_row_bytes = head / h.vocab,
          .kv_bytes = kv * h.layers,
          .attention_flops = attention_flops(h.heads, h.latent, h.rope, context),
          .half_heads_bytes = half_heads_bytes(h.heads, h.nope, h.rope, h.latent),
          .type = main_type(sizes.resident_types),
          .hidden_bytes = 2 * h.hidden * i64{sizeof(f32)},
          .dense_layers = h.dense_layers,
          .moe_layers = h.moe_layers()};
}

// Of what buffers are sized by.
Hparams sizes_of(const ModelShape& m, const SimShape& shape) {
  Hparams h;
  h.layers = shape.dense_layers + shape.moe_layers;
  h.dense_layers = shape.dense_layers;
  h.hidden = m.hidden;
  h.dense_ffn = shape.dense_layers > 0 ? m.dense_ffn : 0;
  h.vocab = m.vocab;
  h.heads = m.heads;
  h.q_lora = m.q_lora;
  h.latent = m.latent;
  h.nope = m.nope;
  h.rope = m.rope;
  h.v = m.v;
  h.experts = m.experts;
  h.top_k = m.top_k;
  h.shared_experts = m.shared_experts;
  h.expert_ffn = m.expert_ffn;
  return h;
}

Hparams set_file(SimSetup& s, const Options& o) {
  Gguf gguf = Gguf::open(o.model);
  Hparams h = read_deepseek2(gguf);
  if (h.moe_layers() == 0) fail("{}: the model has no routed experts: there is nothing to simulate", o.model);
  s.model = h.name;
  s.table = ExpertTable::from_gguf(gguf, h.expert_shape());
  s.routing = trace_header(h);
  s.resident = file_resident(model_sizes(gguf, h), h, o.context);
  return h;
}

Hparams set_shape(SimSetup& s, const Options& o) {
  const ModelShape& model = model_shape(o.shape);
  SimShape shape = sim_shape(model, o);
  s.model = fmt::format("{} {}", o.shape, info(shape.wide).name);
  if (shape.down != shape.wide) s.model += fmt::format("/{}", info(shape.down).name);
  if (shape.packed) s.model += ", packed";
  s.table = sim_expert_table(shape);
  s.routing = {.model_name = std::string(model.title), .layers = shape.moe_layers, .first_layer = shape.dense_layers,
               .experts = shape.experts, .top_k = shape.top_k, .groups = std::max<i64>(1, model.groups),
               .groups_used = std::max<i64>(1, model.groups_used)};
  s.resident = sim_resident(model, shape, o);
  return sizes_of(model, shape);
}

// As asked for, or as the planner would choose on that machine.
i64 expert_budget(const Options& o, const SimSetup& s) {
  i64 in_ram = bytes_in_ram(s.resident, s.homes);
  if (o.ram.bytes == 0) {
    Machine machine{.total_ram_bytes = s.machine.ram_bytes, .available_bytes = s.machine.ram_bytes, .limited_by = {}};
    i64 budget = default_expert_budget(machine, in_ram, 0);
    if (budget == 0)
      fail("the {} of RAM for what every token reads leave nothing of the machine's {} for experts; try a smaller --attn or -c",
           human_bytes(in_ram), human_bytes(s.machine.ram_bytes));
    return budget;
  }
  if (o.ram.bytes + in_ram > s.machine.ram_bytes)
    fail("--ram {} and {} of RAM for weights and KV cache that every token reads are more than the machine's {}",
         human_bytes(o.ram.bytes), human_bytes(in_ram), human_bytes(s.machine.ram_bytes));
  return o.ram.bytes;
}

// As the engine would with the next GPU, if it is known how long heads take.
void share_heads(SimSetup& s, const Options& o) {
  const size_t gpus = s.machine.gpus.size();
  if (gpus < 2 || o.split_heads == 0 || o.context < o.split_heads) return;
  std::vector<i64> copies(gpus);
  for (const LayerHome& home : s.homes.layers)
    if (home.attention) copies[(static_cast<size_t>(home.device) + 1) % gpus] += s.resident.kv_layer_bytes();
  for (size_t d = 0; d < gpus; d++)
    if (s.machine.gpus[d].attention_tflops == 0 || copies[d] > s.homes.left_bytes[d] / 2) return;
  for (size_t d = 0; d < gpus; d++) s.homes.left_bytes[d] -= copies[d];
  s.resident.heads_shared = true;
}

// As asked for, or all that the machine's GPUs have left: none, one size for each, or one per GPU.
std::vector<DeviceRequest> device_requests(const Options& o, const SimSetup& s) {
  std::vector<i64> left = s.homes.left_bytes, asked = left;
  if (!o.vram.empty()) {
    CHECK(parse_byte_sizes(o.vram, asked));  // validated with the options
    bool none = std::all_of(asked.begin(), asked.end(), [](i64 bytes) { return bytes == 0; });
    if (none) return {};
    if (asked.size() == 1 && !left.empty()) asked.resize(left.size(), asked[0]);
    if (asked.size() != left.size())
      fail("--vram {}: {} sizes for {} GPUs of {}; give one, or one for each", o.vram, asked.size(), left.size(),
           s.machine.name);
  }
  std::vector<DeviceRequest> requests;
  for (size_t d = 0; d < left.size(); d++) {
    const SimGpu& gpu = s.machine.gpus[d];
    if (asked[d] > left[d])
      fail("--vram {}: GPU {} ({}) has {} left beside its workspace and the weights that every token reads", o.vram, d,
           gpu.name, human_bytes(left[d]));
    requests.push_back({asked[d], gpu.link_gb_per_second, gpu.expert_gb_per_second});
  }
  return requests;
}

// What the cores do of experts with the memory to themselves, GB/s.
f64 expert_speed(const SimSetup& s) {
  f64 bytes = 0;
  for (const ExpertLayer& layer : s.table.layers())
    bytes += static_cast<f64>(s.table.expert_bytes(layer.layer) * s.table.top_k());
  return bytes / experts_ns(s.machine, s.table);
}

// As the engine would choose it there.
i64 piece_of(const SimSetup& s, const Hparams& h, const Options& o) {
  if (o.batch > 0) return o.batch;
  if (s.plan.all_resident || !s.plan.devices.empty()) return std::min(kPiece, o.context);
  return largest_piece(o.context, s.machine.ram_bytes - bytes_in_ram(s.resident, s.homes) - s.plan.ram_bytes, [&](i64 rows) {
    return Forward::bytes_needed(cpu_ops(), h, {.rows = rows, .context = o.context}, kCores);
  });
}

}  // namespace

SimSetup sim_setup(const Options& options) {
  SimSetup s;
  s.machine = find_machine(options.machine);
  const Hparams h = options.model.empty() ? set_shape(s, options) : set_file(s, options);
  s.homes = place_resident(s.resident.homeless(), usable_vram(s.machine));
  share_heads(s, options);
  s.plan = make_plan(s.table, {.ram_bytes = expert_budget(options, s),
                               .ring_depth = options.ring_depth,
                               .piece_bytes = options.piece.bytes,
                               .devices = device_requests(options, s),
                               .cpu_gb_per_second = expert_speed(s)});
  s.machine.ssd_gb_per_second = s.machine.ssd_speed(s.plan.piece_bytes, s.plan.ring_depth);
  s.piece = piece_of(s, h, options);
  return s;
}

std::unique_ptr<RoutingSource> sim_routing(const Options& options, const SimSetup& setup) {
  const ExpertTable& table = setup.table;
  const std::string& text = options.sim_routing;
  u64 seed = static_cast<u64>(options.synth_seed);
  if (text == "uniform") return uniform_routing(table.experts_per_layer(), seed);
  constexpr std::string_view kZipf = "zipf:";
  if (text.starts_with(kZipf)) {
    const char* number = text.c_str() + kZipf.size();
    char* end = nullptr;
    f64 exponent = std::strtod(number, &end);
    if (end != number && *end == '\0' && exponent >= 0 && exponent <= 10)
      return zipf_routing(table.moe_layers(), table.experts_per_layer(), exponent, seed);
    fail("--routing {}: the exponent must be a number from 0 to 10, as in zipf:0.5", text);
  }
  if (!text.starts_with("synthetic:") && !std::filesystem::exists(text))
    fail("--routing {}: must be uniform, zipf:S, synthetic:PROFILE or a trace's file", text);
  RoutingRequest request{.what = text, .shape = setup.routing, .tokens = options.sim_prompt + options.sim_tokens, .seed = seed};
  // A prompt and its answer are of one subject.
  if (options.sim_prompt > 0) request.prompt_tokens = request.tokens;
  std::unique_ptr<TraceSource> trace = open_routing(request);
  return trace_routing(std::move(trace), text);
}

std::unique_ptr<ResidencyPolicy> sim_policy(const Options& options, const SimSetup& setup) {
  const ExpertTable& table = setup.table;
  if (options.popularity.empty()) return make_policy(options.policy, setup.plan, table.experts_per_layer(), table.top_k());
  PopularityFile known = read_popularity(options.popularity);
  if (known.popularity.moe_layers() != table.moe_layers() || known.popularity.experts() != table.experts_per_layer())
    fail("{}: popularity of {} layers of {} experts; the model has {} of {}", options.popularity,
         known.popularity.moe_layers(), known.popularity.experts(), table.moe_layers(), table.experts_per_layer());
  return make_policy(options.policy, setup.plan, table.experts_per_layer(), table.top_k(), &known.popularity);
}

}  // namespace stoker
