#include "tools/sim_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/terminal.h"

namespace stoker {

namespace {

f64 share(i64 part, i64 whole) { return whole == 0 ? 0 : static_cast<f64>(part) / static_cast<f64>(whole); }
f64 per_token(i64 value, const SimTotals& t) { return share(value, t.tokens); }
f64 ms(i64 ns, const SimTotals& t) { return per_token(ns, t) * 1e-6; }
// Of the time with a read under way, how much something else was done.
f64 overlap(const SimTotals& t) {
  return std::max(0.0, share(t.stats.disk_busy_ns - t.wait_ns, t.stats.disk_busy_ns));
}

std::string head(const SimReport& r) {
  const SimSetup& s = r.setup;
  i64 all = s.table.moe_layers() * s.table.experts_per_layer();
  std::string text = fmt::format("simulated: {}\n", s.machine.name);
  text += fmt::format("model     {}, {} layers of {} experts, {} together, {} each\n", s.model, s.table.moe_layers(),
                      s.table.experts_per_layer(), human_bytes(s.table.total_bytes()),
                      human_bytes(s.table.total_bytes() / all));
  for (size_t d = 0; d < s.plan.devices.size(); d++)
    text += fmt::format("VRAM {}    {} for experts: {} of {} ({:.1f} %), {}\n", d, human_bytes(s.plan.devices[d].vram_bytes),
                        s.plan.device_experts(d), all, 100 * share(s.plan.device_experts(d), all), s.machine.gpus[d].name);
  text += fmt::format("RAM       {} for experts: {} of {} ({:.1f} %), policy {}\n", human_bytes(s.plan.ram_bytes),
                      s.plan.ram_experts(), all, 100 * share(s.plan.ram_experts(), all), r.options.policy);
  i64 on_gpus = bytes_on_gpus(s.resident, s.homes).all();
  text += fmt::format("resident  {} that every token reads: {} from the GPUs' memory, {} from RAM\n",
                      human_bytes(s.resident.total_bytes()), human_bytes(on_gpus), human_bytes(s.resident.total_bytes() - on_gpus));
  return text + fmt::format("routing   {}\n\n", r.routing);
}

// Experts that were in memory because an earlier token used them.
i64 cache_hits(const SimTotals& t) { return t.stats.hits + t.stats.device_hits - t.stats.predicted_hits; }

std::string gpu_text(const SimReport& r) {
  const SimTotals& t = r.phases.back().totals;
  if (r.gpus.empty()) return "";
  std::string text = fmt::format(
      "hits      {:.1f} % in VRAM, {:.1f} % in RAM; {:.1f} experts per token go to VRAM, {} there and {} back\n",
      100 * share(t.stats.device_hits, t.stats.requests), 100 * share(t.stats.hits, t.stats.requests),
      per_token(t.stats.promotions, t), human_bytes(t.stats.uploaded_bytes / t.tokens),
      human_bytes(t.stats.downloaded_bytes / t.tokens));
  i64 total_ns = 0;
  for (const SimPhase& phase : r.phases) total_ns += phase.totals.total_ns;
  for (size_t d = 0; d < r.gpus.size(); d++)
    text += fmt::format("GPU {}     {} experts; since the beginning at experts {:.0f} % of the time, link {:.0f} % up, {:.0f} % down\n",
                        d, r.gpus[d].experts, 100 * share(r.gpus[d].expert_ns, total_ns),
                        100 * share(r.gpus[d].upload_ns, total_ns), 100 * share(r.gpus[d].download_ns, total_ns));
  return text;
}

std::string prediction_text(const SimReport& r) {
  std::string text;
  for (size_t i = 0; i < r.forecasts.size(); i++) {
    const ForecastScore& s = r.forecasts[i];
    if (s.slots == 0) continue;
    i64 distance = static_cast<i64>(i) + 1, top_k = r.setup.table.top_k();
    text += fmt::format("predict   {}, {} ahead: recall@{} {:.1f} %, @{} {:.1f} %, of gate weight {:.1f} %, Brier score {:.3f}\n",
                        r.predictor, distance, top_k, s.recall_narrow() * 100,
                        ranking_width(r.setup.table.experts_per_layer(), top_k, distance), s.recall_wide() * 100,
                        s.gate_mass_recall() * 100, s.brier());
  }
  const SimTotals& t = r.phases.back().totals;
  if (r.predictor != "none")
    text += fmt::format("prefetch  {}, at probability {:.2f} and more, {} ahead: {} per token, {:.0f} % of it useful; hits {:.1f} % with it\n",
                        r.prefetch, r.threshold, r.lookahead, human_bytes(static_cast<i64>(per_token(t.stats.predicted_bytes, t))),
                        100 * useful_share(t.stats),
                        100 * share(t.stats.hits + t.stats.device_hits, t.stats.requests));
  return text;
}

std::string table(const SimReport& r) {
  std::string text = fmt::format("{:<6}{:>7}{:>10}{:>10} |{:>10}{:>9}{:>11}{:>10}{:>7} |{:>10}{:>9}{:>9}{:>10}\n", "", "tokens",
                                 "tokens/s", "ms/token", "resident", "experts", "disk wait", "GPU wait", "rest", "disk busy",
                                 "overlap", "hits", "GB read");
  if (!r.gpus.empty()) text.insert(text.size() - 1, fmt::format("{:>9}", "in VRAM"));
  for (const SimPhase& phase : r.phases) {
    const SimTotals& t = phase.totals;
    text += fmt::format("{:<6}{:>7}{:>10.2f}{:>10.1f} |{:>10.1f}{:>9.1f}{:>11.1f}{:>10.1f}{:>7.1f} |{:>9.0f}%{:>8.0f}%{:>8.1f}%{:>10.2f}\n",
                        phase.name, t.tokens, tokens_per_second(t), ms(t.total_ns, t), ms(t.resident_ns, t),
                        ms(t.expert_ns, t), ms(t.wait_ns, t), ms(t.gpu_wait_ns, t), ms(t.rest_ns + t.look_ns, t),
                        100 * share(t.stats.disk_busy_ns, t.total_ns), 100 * overlap(t),
                        100 * share(cache_hits(t), t.stats.requests), per_token(t.stats.bytes_read, t) * 1e-9);
    if (!r.gpus.empty())
      text.insert(text.size() - 1, fmt::format("{:>8.1f}%", 100 * share(t.stats.device_hits, t.stats.requests)));
  }
  return text;
}

// In RAM or VRAM when it is asked for.
f64 in_memory(const SimTotals& t) { return share(t.stats.hits + t.stats.device_hits, t.stats.requests); }

std::string foreknown_text(const SimReport& r, const SimForeknown& known) {
  std::string text;
  if (known.foreseen > 0)
    text += fmt::format("this policy, coming layers known (perfect lookahead)  {:>8.2f} tokens/s\n", known.foreseen);
  const SimTotals& t = known.clairvoyant;
  if (t.tokens == 0) return text;
  text += fmt::format("clairvoyant policy, the same scheduler and machine    {:>8.2f} tokens/s, {:.1f} % hits", tokens_per_second(t),
                      100 * in_memory(t));
  if (!r.gpus.empty()) text += fmt::format(", {:.1f} % in VRAM", 100 * share(t.stats.device_hits, t.stats.requests));
  return text + fmt::format(", disk wait {:.1f} ms; this policy has {:.0f} % of its speed\n", ms(t.wait_ns, t),
                            100 * tokens_per_second(r.phases.back().totals) / tokens_per_second(t));
}

std::string bounds_text(const SimReport& r, const SimForeknown& known) {
  const SimPhase& phase = r.phases.back();
  SimBounds b = sim_bounds(r, phase);
  i64 requests = phase.totals.stats.requests;
  std::string belady = fmt::format("Belady's reads, {:.1f} % hits", 100 * share(phase.belady_hits, requests));
  if (!r.gpus.empty()) belady += fmt::format(", {:.1f} % in VRAM", 100 * share(phase.belady_device_hits, requests));
  auto line = [](const char* what, const SimBound& limit) {
    return fmt::format("  {:<52}{:>8.2f} tokens/s, held by {}\n", what, limit.tokens_per_second(), limit.limit);
  };
  return fmt::format("\nat most, {} tokens, everything overlapped and, but for the roofline, VRAM filled for nothing at every token:\n", phase.name) +
         line("these reads (roofline)", b.roofline) +
         line(belady.c_str(), b.belady) +
         line("nothing to read (infinite bandwidth)", b.infinite) +
         foreknown_text(r, known);
}

nlohmann::ordered_json phase_json(const SimReport& r, const SimPhase& phase) {
  const SimTotals& t = phase.totals;
  SimBounds b = sim_bounds(r, phase);
  auto limit = [](const SimBound& x) {
    return nlohmann::ordered_json{{"tokens_per_second", x.tokens_per_second()}, {"held_by", x.limit}};
  };
  return {{"tokens", t.tokens},
          {"tokens_per_second", tokens_per_second(t)},
          {"ms_per_token", ms(t.total_ns, t)},
          {"resident_ms", ms(t.resident_ns, t)},
          {"experts_ms", ms(t.expert_ns, t)},
          {"disk_wait_ms", ms(t.wait_ns, t)},
          {"gpu_wait_ms", ms(t.gpu_wait_ns, t)},
          {"rest_ms", ms(t.rest_ns, t)},
          {"lookahead_ms", ms(t.look_ns, t)},
          {"disk_busy_ms", ms(t.stats.disk_busy_ns, t)},
          {"overlap", overlap(t)},
          {"disk_busy_share", share(t.stats.disk_busy_ns, t.total_ns)},
          {"hit_rate", share(cache_hits(t), t.stats.requests)},
          {"hit_rate_with_prefetch", share(t.stats.hits + t.stats.device_hits, t.stats.requests)},
          {"vram_hit_rate", share(t.stats.device_hits, t.stats.requests)},
          {"vram_bytes", per_token(t.device_bytes, t)},
          {"uploaded_bytes", per_token(t.stats.uploaded_bytes, t)},
          {"downloaded_bytes", per_token(t.stats.downloaded_bytes, t)},
          {"prefetch_bytes", per_token(t.stats.predicted_bytes, t)},
          {"prefetch_useful_share", useful_share(t.stats)},
          {"belady_hit_rate", share(phase.belady_hits, t.stats.requests)},
          {"belady_vram_hit_rate", share(phase.belady_device_hits, t.stats.requests)},
          {"bytes_read", per_token(t.stats.bytes_read, t)},
          {"expert_bytes", per_token(t.expert_bytes, t)},
          {"bounds",
           {{"roofline", limit(b.roofline)}, {"belady", limit(b.belady)}, {"infinite_bandwidth", limit(b.infinite)}}}};
}

}  // namespace

std::string sim_text(const SimReport& r, const SimForeknown& known) {
  return head(r) + table(r) + gpu_text(r) + prediction_text(r) + bounds_text(r, known);
}

std::string sim_json(const SimReport& r, const SimForeknown& known) {
  const SimSetup& s = r.setup;
  nlohmann::ordered_json json = {{"simulated", true},
                                 {"machine", s.machine.name},
                                 {"model", s.model},
                                 {"expert_bytes_total", s.table.total_bytes()},
                                 {"resident_bytes", s.resident.total_bytes()},
                                 {"resident_bytes_in_vram", bytes_on_gpus(s.resident, s.homes).all()},
                                 {"resident_bytes_in_ram", bytes_in_ram(s.resident, s.homes)},
                                 {"ram_bytes", s.plan.ram_bytes},
                                 {"slots", s.plan.ram_experts()},
                                 {"experts", s.table.moe_layers() * s.table.experts_per_layer()},
                                 {"policy", r.options.policy},
                                 {"routing", r.routing},
                                 {"seed", r.options.synth_seed},
                                 {"predictor", r.predictor},
                                 {"prefetch", r.prefetch},
                                 {"prefetch_threshold", r.threshold},
                                 {"prefetch_lookahead", r.lookahead},
                                 {"foreseen_tokens_per_second", known.foreseen},
                                 {"real_seconds", r.real_seconds}};
  if (const SimTotals& t = known.clairvoyant; t.tokens > 0)
    json["clairvoyant"] = {{"tokens_per_second", tokens_per_second(t)},
                           {"hit_rate", in_memory(t)},
                           {"vram_hit_rate", share(t.stats.device_hits, t.stats.requests)},
                           {"disk_wait_ms", ms(t.wait_ns, t)},
                           {"uploaded_bytes", per_token(t.stats.uploaded_bytes, t)}};
  for (size_t i = 0; i < r.forecasts.size(); i++) {
    const ForecastScore& f = r.forecasts[i];
    if (f.slots == 0) continue;
    json["forecasts"].push_back({{"distance", i + 1},
                                 {"recall", f.recall_narrow()},
                                 {"recall_wide", f.recall_wide()},
                                 {"gate_mass_recall", f.gate_mass_recall()},
                                 {"brier", f.brier()}});
  }
  for (size_t d = 0; d < r.gpus.size(); d++)
    json["gpus"].push_back({{"name", s.machine.gpus[d].name},
                            {"vram_bytes", s.plan.devices[d].vram_bytes},
                            {"slots", s.plan.device_experts(d)},
                            {"experts", r.gpus[d].experts}});
  for (const SimPhase& phase : r.phases) json[std::string(phase.name)] = phase_json(r, phase);
  return json.dump(2) + "\n";
}

}  // namespace stoker
