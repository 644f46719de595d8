// stoker plan: what of a model goes where on a machine, and what speed to expect of that.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "tools/commands.h"
#include "tools/sim_run.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

// Of what every token reads, what a GPU is home of.
struct GpuHome {
  i64 attention_layers = 0, ffn_layers = 0, head_rows = 0;
  HomeBytes bytes;
};

GpuHome home_on(const SimSetup& s, size_t gpu) {
  GpuHome there{.head_rows = s.homes.head_rows[gpu],
                .bytes = bytes_at_home(s.resident.homeless(), s.homes, static_cast<i32>(gpu))};
  for (const LayerHome& home : s.homes.layers) {
    if (home.device != static_cast<i32>(gpu)) continue;
    there.ffn_layers++;
    there.attention_layers += home.attention;
  }
  return there;
}

struct Placement {
  i64 weight_bytes, kv_bytes;  // that every token reads
  i64 expert_bytes, in_ram_bytes;
  i64 experts, in_ram, in_vram;
};

Placement placement(const SimReport& r) {
  const SimSetup& s = r.setup;
  i64 experts = s.table.moe_layers() * s.table.experts_per_layer();
  i64 in_vram = 0;
  for (size_t d = 0; d < s.plan.devices.size(); d++) in_vram += s.plan.device_experts(d);
  return {.weight_bytes = s.resident.weight_bytes(),
          .kv_bytes = s.resident.kv_bytes,
          .expert_bytes = s.table.total_bytes(),
          .in_ram_bytes = s.plan.arena_bytes(),
          .experts = experts,
          .in_ram = s.plan.ram_experts(),
          .in_vram = in_vram};
}

std::string text(const SimReport& r) {
  Placement p = placement(r);
  const SimPhase& phase = r.phases.back();
  SimBounds bounds = sim_bounds(r, phase);
  std::string text = fmt::format("{} on {}\n\n", r.setup.model, r.setup.machine.name);
  auto line = [&](std::string_view what, i64 bytes, const std::string& place) {
    text += fmt::format("  {:<28}{:>10}   {}\n", what, human_bytes(bytes), place);
  };
  bool gpus = !r.setup.machine.gpus.empty();
  i64 on_gpus = bytes_on_gpus(r.setup.resident, r.setup.homes).weights;
  line("weights of every token", p.weight_bytes,
       gpus ? fmt::format("RAM, but for {} that GPUs have", human_bytes(on_gpus)) : "RAM");
  line(fmt::format("KV cache, -c {}", r.options.context), p.kv_bytes, gpus ? "RAM; of what GPUs have, a copy" : "RAM");
  for (size_t d = 0; d < r.setup.machine.gpus.size(); d++) {
    GpuHome home = home_on(r.setup, d);
    line("of these", home.bytes.all(),
         fmt::format("memory of GPU {}: attention of {} layers of {}, FFN of {}, {} rows of {} of the output head", d,
                     home.attention_layers, r.setup.resident.layers(), home.ffn_layers, home.head_rows, r.setup.resident.head_rows));
  }
  if (r.setup.resident.heads_shared)
    line("KV cache again", bytes_on_gpus(r.setup.resident, r.setup.homes).cache, "memory of GPUs, of which two share a layer's heads");
  for (size_t d = 0; d < r.gpus.size(); d++)
    line("experts", r.setup.plan.device_arena_bytes(d),
         fmt::format("memory of GPU {} ({}): {} of {} at a time", d, r.setup.machine.gpus[d].name,
                     r.setup.plan.device_experts(d), p.experts));
  line("experts", p.in_ram_bytes,
       fmt::format("RAM, of {}: {} of {} at a time", human_bytes(r.setup.machine.ram_bytes), p.in_ram, p.experts));
  if (!r.setup.plan.all_resident)
    line("all experts", p.expert_bytes,
         fmt::format("disk: {} are there alone, and read when they are wanted", p.experts - p.in_ram - p.in_vram));
  text += fmt::format("  {:<28}{:>10}   tokens, -b\n", "a prompt passes in pieces of", r.setup.piece);
  text += fmt::format("\nexpected, simulated with {}:\n", r.routing);
  std::string when = r.phases.size() > 1       ? fmt::format("after {} tokens", r.phases[0].totals.tokens)
                     : phase.name == "cold" ? fmt::format("for the first {} tokens", phase.totals.tokens)
                                            : std::string("with all experts in RAM");
  return text + fmt::format("  {:.2f} tokens/s {}, held up by {}; {:.2f} if everything overlapped\n",
                            tokens_per_second(phase.totals), when, bounds.roofline.limit,
                            bounds.roofline.tokens_per_second());
}

std::string json(const SimReport& r) {
  Placement p = placement(r);
  const SimPhase& phase = r.phases.back();
  SimBounds bounds = sim_bounds(r, phase);
  nlohmann::ordered_json json = {{"model", r.setup.model},
                                 {"machine", r.setup.machine.name},
                                 {"resident_bytes", p.weight_bytes},
                                 {"kv_bytes", p.kv_bytes},
                                 {"resident_bytes_in_vram", bytes_on_gpus(r.setup.resident, r.setup.homes).all()},
                                 {"resident_bytes_in_ram", bytes_in_ram(r.setup.resident, r.setup.homes)},
                                 {"expert_bytes", p.expert_bytes},
                                 {"expert_bytes_in_ram", p.in_ram_bytes},
                                 {"experts", p.experts},
                                 {"experts_in_ram", p.in_ram},
                                 {"experts_in_vram", p.in_vram},
                                 {"prompt_piece_tokens", r.setup.piece},
                                 {"routing", r.routing},
                                 {"simulated_tokens_per_second", tokens_per_second(phase.totals)},
                                 {"held_by", bounds.roofline.limit},
                                 {"most_tokens_per_second", bounds.roofline.tokens_per_second()}};
  for (size_t d = 0; d < r.setup.machine.gpus.size(); d++) {
    GpuHome home = home_on(r.setup, d);
    json["gpus"].push_back({{"name", r.setup.machine.gpus[d].name},
                            {"attention_layers", home.attention_layers},
                            {"home_layers", home.ffn_layers},
                            {"head_rows", home.head_rows},
                            {"resident_bytes", home.bytes.weights + home.bytes.routers},
                            {"kv_bytes", home.bytes.cache}});
  }
  return json.dump(2) + "\n";
}

}  // namespace

int plan_command(const Options& options) {
  SimSetup setup = sim_setup(options);
  SimReport report = run_simulation(options, setup);
  print(options.json ? json(report) : text(report));
  return 0;
}

}  // namespace stoker
