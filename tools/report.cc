#include "tools/report.h"

#include <algorithm>
#include <bit>
#include <fstream>

#include "runtime/engine.h"
#include "scheduler/memory_probe.h"
#include "tools/options.h"
#include "tools/recall_chart.h"
#include "tools/terminal.h"
#include "tools/timeline_report.h"

namespace stoker {

namespace {

f64 ratio(i64 part, i64 whole) { return whole > 0 ? static_cast<f64>(part) / static_cast<f64>(whole) : 0; }

// Lets VmHWM start again from now (Linux 4.0; elsewhere it goes on).
void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << "5\n"; }

std::string speed_line(std::string_view what, const Phase& p) {
  return fmt::format("{} {} tokens in {:.2f} s, {:.2f} tokens/s", what, p.tokens, p.seconds(),
                     p.tokens_per_second());
}

// A disk that is busy for this share of the time leaves nothing to gain but fewer bytes.
constexpr f64 kSaturated = 0.9;

}  // namespace

std::string_view name(Bottleneck bottleneck) {
  switch (bottleneck) {
    case Bottleneck::disk: return "disk";
    case Bottleneck::compute: return "compute";
    case Bottleneck::turns: break;
  }
  return "turns";
}

std::string_view describe(Bottleneck bottleneck) {
  switch (bottleneck) {
    case Bottleneck::disk: return "the disk was the bottleneck";
    case Bottleneck::compute: return "the disk was not the bottleneck";
    case Bottleneck::turns: break;
  }
  return "disk and compute took turns, neither was full";
}

f64 Phase::tokens_per_second() const { return wall_ns > 0 ? static_cast<f64>(tokens) / seconds() : 0; }
f64 Phase::ms_per_token(Stage stage) const {
  return ratio(stage_ns[static_cast<size_t>(stage)], tokens) * 1e-6;
}
f64 Phase::hit_rate() const { return experts.requests > 0 ? ratio(experts.hits + experts.device_hits, experts.requests) : 1; }
f64 Phase::disk_busy_share() const { return std::min(1.0, ratio(experts.disk_busy_ns, wall_ns)); }
f64 Phase::compute_share() const {
  return wall_ns > 0 ? 1 - ratio(stage_ns[static_cast<size_t>(Stage::disk_wait)], wall_ns) : 0;
}
f64 Phase::disk_gb_per_second() const { return ratio(experts.bytes_read, wall_ns); }
f64 Phase::disk_gb_per_second_busy() const { return ratio(experts.bytes_read, experts.disk_busy_ns); }
Bottleneck Phase::bottleneck() const {
  if (experts.misses == 0 || disk_busy_share() <= compute_share()) return Bottleneck::compute;
  return disk_busy_share() >= kSaturated ? Bottleneck::disk : Bottleneck::turns;
}

Phase& Phase::operator+=(const Phase& other) {
  tokens += other.tokens;
  wall_ns += other.wall_ns;
  for (size_t i = 0; i < stage_ns.size(); ++i) stage_ns[i] += other.stage_ns[i];
  experts += other.experts;
  if (lanes.empty()) lanes.resize(other.lanes.size());
  for (size_t i = 0; i < other.lanes.size(); ++i) {
    lanes[i].lane = other.lanes[i].lane;
    lanes[i].busy_ns += other.lanes[i].busy_ns;
    lanes[i].window_ns += other.lanes[i].window_ns;
  }
  return *this;
}

PhaseMeter::PhaseMeter(const Engine& engine)
    : engine_(engine),
      start_ns_(steady_clock().now_ns()),
      stage_ns_(engine.timer().all_ns()),
      experts_(engine.scheduler_stats()) {}

Phase PhaseMeter::stop(i64 tokens) const {
  Phase p;
  p.tokens = tokens;
  p.wall_ns = steady_clock().now_ns() - start_ns_;
  if (engine_.timeline() != nullptr) p.lanes = engine_.timeline()->use(start_ns_, start_ns_ + p.wall_ns);
  p.experts = engine_.scheduler_stats() - experts_;
  std::array<i64, kStages> now = engine_.timer().all_ns();
  // The engine's timer runs within its passes only. What the wall saw beyond them (sampling, printing) is
  // rest.
  i64 named = 0;
  for (size_t i = 0; i < now.size(); ++i) {
    p.stage_ns[i] = now[i] - stage_ns_[i];
    if (i != static_cast<size_t>(Stage::rest)) named += p.stage_ns[i];
  }
  p.stage_ns[static_cast<size_t>(Stage::rest)] = std::max<i64>(0, p.wall_ns - named);
  return p;
}

nlohmann::ordered_json to_json(const Phase& p) {
  nlohmann::ordered_json json = {
      {"tokens", p.tokens},
      {"seconds", p.seconds()},
      {"tokens_per_second", p.tokens_per_second()},
      {"attention_ms_per_token", p.ms_per_token(Stage::attention)},
      {"experts_ms_per_token", p.ms_per_token(Stage::experts)},
      {"device_wait_ms_per_token", p.ms_per_token(Stage::device_wait)},
      {"disk_wait_ms_per_token", p.ms_per_token(Stage::disk_wait)},
      {"rest_ms_per_token", p.ms_per_token(Stage::rest)},
      {"expert_requests", p.experts.requests},
      {"expert_hits", p.experts.hits},
      {"expert_device_hits", p.experts.device_hits},
      {"uploaded_bytes", p.experts.uploaded_bytes},
      {"downloaded_bytes", p.experts.downloaded_bytes},
      {"expert_hit_rate", p.hit_rate()},
      {"expert_evictions", p.experts.evictions},
      {"disk_read_bytes", p.experts.bytes_read},
      {"prefetch_bytes", p.experts.predicted_bytes},
      {"prefetch_useful_share", useful_share(p.experts)},
      {"prefetch_upgrades", p.experts.upgrades},
      {"read_ahead_bytes", p.experts.ahead_bytes},
      {"read_ahead_useful_bytes", p.experts.ahead_useful_bytes},
      {"disk_gb_per_second", p.disk_gb_per_second()},
      {"disk_gb_per_second_busy", p.disk_gb_per_second_busy()},
      {"disk_busy_share", p.disk_busy_share()},
      {"bottleneck", name(p.bottleneck())},
  };
  if (!p.lanes.empty()) json["lanes"] = lanes_json(p.lanes);
  return json;
}

nlohmann::ordered_json engine_json(const Engine& engine) {
  EngineFootprint f = engine.footprint();
  nlohmann::ordered_json devices = nlohmann::ordered_json::array();
  for (const DeviceFootprint& d : f.devices)
    devices.push_back(
        {{"id", d.id}, {"lost", d.lost}, {"resident_bytes", d.resident_bytes}, {"home_layers", d.home_layers}, {"attention_layers", d.attention_layers}, {"head_rows", d.head_rows}, {"kv_bytes", d.kv_bytes}, {"expert_bytes", d.expert_bytes}, {"expert_slots", d.expert_slots}, {"experts", d.experts}});
  return {
      {"threads", engine.threads()},           {"isa", name(engine.isa())},
      {"exact", engine.options().exact},       {"io", engine.io_description()},
      {"cache_type", name(engine.cache_type())},
      {"resident_bytes", f.resident_bytes},    {"kv_bytes", f.kv_bytes},
      {"scratch_bytes", f.scratch_bytes},      {"expert_budget_bytes", f.expert_budget_bytes},
      {"expert_slots", f.expert_slots},        {"experts", f.expert_total},
      {"experts_bytes", f.expert_total_bytes}, {"devices", devices},
      {"peak_rss_bytes", peak_rss_bytes()},
  };
}

// That gates guess now.
static i64 layers_ahead(const Engine& engine) {
  if (!is_gate(engine.options().predictor)) return 1;
  return engine.options().lookahead > 0 ? engine.options().lookahead : engine.governor().lookahead();
}

nlohmann::ordered_json prediction_json(const Engine& engine) {
  const Predictor* predictor = engine.predictor();
  if (predictor == nullptr) return {{"predictor", "none"}, {"prefetch", "off"}};
  const Governor& governor = engine.governor();
  nlohmann::ordered_json json = {{"predictor", name(engine.options().predictor)},
                                 {"prefetch", name(governor.state())},
                                 {"prefetch_threshold", governor.threshold()},
                                 {"prefetch_lookahead", layers_ahead(engine)},
                                 {"prefetch_gain", governor.gain()}};
  for (i64 distance = 1; distance <= Predictor::kMaxDistance; ++distance) {
    const ForecastScore& s = predictor->score(distance);
    if (s.slots == 0) continue;
    json["forecasts"].push_back({{"distance", distance},
                                 {"slots", s.slots},
                                 {"recall", s.recall_narrow()},
                                 {"recall_wide", s.recall_wide()},
                                 {"gate_mass_recall", s.gate_mass_recall()},
                                 {"brier", s.brier()}});
  }
  return json;
}

void note_prediction(const Engine& engine, const Phase& phase) {
  const Predictor* predictor = engine.predictor();
  if (predictor == nullptr) return;
  if (phase.experts.ahead_bytes > 0)
    note("prompts: {} read before their layer had come, {} of it useful", human_bytes(phase.experts.ahead_bytes),
         human_bytes(phase.experts.ahead_useful_bytes));
  i64 top_k = engine.hparams().top_k;
  for (i64 distance = 1; distance <= Predictor::kMaxDistance; ++distance) {
    const ForecastScore& s = predictor->score(distance);
    if (s.slots == 0) continue;
    note("predict: {}, {} ahead: recall@{} {:.1f} %, @{} {:.1f} %, of gate weight {:.1f} %, Brier score {:.3f}",
         name(engine.options().predictor), distance, top_k, s.recall_narrow() * 100, predictor->width(distance),
         s.recall_wide() * 100, s.gate_mass_recall() * 100, s.brier());
  }
  const Governor& governor = engine.governor();
  note("prefetch {}, at probability {:.2f} and more, {} ahead: {} read, {:.0f} % of it useful", name(governor.state()),
       governor.threshold(), layers_ahead(engine), human_bytes(phase.experts.predicted_bytes), useful_share(phase.experts) * 100);
}

void plot_recall(const Engine& engine, const std::string& path) {
  if (path.empty()) return;
  const Hparams& h = engine.hparams();
  LayerRecall recall{.model = h.name, .predictor = std::string(name(engine.options().predictor)), .first_layer = h.dense_layers,
                     .experts = h.experts, .top_k = h.top_k, .scores = {}};
  if (engine.predictor() != nullptr) recall.scores = engine.predictor()->layer_scores();
  write_recall_chart(path, recall);
}

// Where the experts were that were wanted, and what was moved.
static void note_devices(const EngineFootprint& f, const Phase& p) {
  if (f.devices.empty()) return;
  auto percent = [&](i64 hits) { return ratio(hits, p.experts.requests) * 100; };
  note("tiers:   wanted experts were on devices {:.1f} %, in RAM {:.1f} %, on disk {:.1f} %; {} went up, {} came back",
       percent(p.experts.device_hits), percent(p.experts.hits), percent(p.experts.misses),
       human_bytes(p.experts.uploaded_bytes), human_bytes(p.experts.downloaded_bytes));
  for (const DeviceFootprint& d : f.devices) {
    if (d.lost) {
      note("         {}: lost", d.id);
      continue;
    }
    note("         {}: {} experts of {} that fit, {}; attention of {} layers, FFN of {}, {} rows of the head, {}, with {} of KV cache",
         d.id, d.experts, d.expert_slots, human_bytes(d.expert_bytes), d.attention_layers, d.home_layers, d.head_rows,
         human_bytes(d.resident_bytes), human_bytes(d.kv_bytes));
  }
}

// A prompt that waits for the disk for less of its time gains nothing worth a word.
constexpr f64 kComputing = 0.9;

// A prompt of several pieces reads most of a streaming model for each of them.
static void note_pieces(const Engine& engine, const Phase& prompt) {
  i64 chunk = engine.options().chunk, most = std::min(engine.options().context, kMostBatch);
  if (prompt.tokens <= chunk || chunk >= most || prompt.compute_share() > kComputing) return;
  note("         in pieces of {} tokens, for each of which experts are read from disk: a larger piece, -b {}, reads fewer",
       chunk, std::min(most, static_cast<i64>(std::bit_ceil(static_cast<u64>(prompt.tokens)))));
}

void note_run_report(const Engine& engine, const RunReport& report) {
  const Phase& d = report.decode;
  Phase both = report.prompt;
  both += d;
  EngineFootprint f = engine.footprint();
  note_line(speed_line("prompt: ", report.prompt));
  note_pieces(engine, report.prompt);
  note_line(speed_line("decode: ", d));
  if (d.tokens > 0) {
    note(
        "         {:.1f} ms per token: attention {:.1f}, experts {:.1f}, waiting for {}disk {:.1f}, rest "
        "{:.1f}",
        d.seconds() * 1e3 / static_cast<f64>(d.tokens), d.ms_per_token(Stage::attention),
        d.ms_per_token(Stage::experts),
        f.devices.empty() ? "" : fmt::format("devices {:.1f}, for ", d.ms_per_token(Stage::device_wait)),
        d.ms_per_token(Stage::disk_wait), d.ms_per_token(Stage::rest));
  }
  note("experts: {:.1f} % of {} requests were in memory; {} of {} experts have a slot ({} budget)",
       both.hit_rate() * 100, both.experts.requests, f.expert_slots, f.expert_total,
       human_bytes(f.expert_budget_bytes));
  note_devices(f, both);
  if (both.experts.bytes_read > 0) {
    note("disk:    {} read, {:.2f} GB/s over the run, {:.2f} GB/s while busy",
         human_bytes(both.experts.bytes_read), both.disk_gb_per_second(), both.disk_gb_per_second_busy());
    const Phase& judged = d.tokens > 0 ? d : both;
    note("         busy {:.0f} % of the {}, computing {:.0f} %: {}", judged.disk_busy_share() * 100,
         d.tokens > 0 ? "decode time" : "time", judged.compute_share() * 100, describe(judged.bottleneck()));
  } else {
    note("disk:    nothing read after loading: not the bottleneck");
  }
  note_prediction(engine, both);
  note("memory:  {} resident weights in RAM, {} KV cache, {} peak RSS", human_bytes(f.resident_bytes),
       human_bytes(f.kv_bytes), human_bytes(peak_rss_bytes()));
  note("logits:  hash {:016x}, seed {}", report.logits_hash, report.seed);
}

void note_perf_table(const Engine& engine, const Phase& decode, f64 memory_gb_per_second) {
  if (decode.tokens == 0) return;
  TokenBytes bytes = engine.token_bytes();
  f64 per_token = static_cast<f64>(decode.tokens);
  struct Line {
    Stage stage;
    f64 bytes;  // of weights per token; the disk's: bytes read per token
  };
  const std::array<Line, kStages> lines = {
      Line{Stage::attention, static_cast<f64>(bytes.attention)},
      Line{Stage::experts, static_cast<f64>(bytes.experts)},
      Line{Stage::device_wait, 0},
      Line{Stage::disk_wait, static_cast<f64>(decode.experts.bytes_read) / per_token},
      Line{Stage::rest, static_cast<f64>(bytes.rest)},
  };
  note("stage        ms/token   share      MiB/token       GB/s   of memory roof");
  for (const Line& line : lines) {
    f64 ms = decode.ms_per_token(line.stage);
    f64 total_ms = decode.seconds() * 1e3 / per_token;
    f64 speed = ms > 0 ? line.bytes / (ms * 1e6) : 0;
    bool from_memory = line.stage != Stage::disk_wait && memory_gb_per_second > 0;
    note("{:<11}{:10.2f}{:7.0f} %{:15.1f}{:11.2f}{:>15}", name(line.stage), ms,
         total_ms > 0 ? ms / total_ms * 100 : 0, line.bytes / static_cast<f64>(kMiB), speed,
         from_memory ? fmt::format("{:.0f} %", speed / memory_gb_per_second * 100) : "-");
  }
  note_lanes(decode.lanes);
}

f64 measure_memory_roof(int threads) {
  try {
    f64 speed = measure_memory({.threads = threads}).best().gb_per_second;
    reset_peak_rss();
    return speed;
  } catch (const Error& e) {
    note("memory not measured: {}", e.what());
    return 0;
  }
}

i64 peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  std::string key;
  while (status >> key) {
    i64 kib = 0;
    if (key == "VmHWM:" && status >> kib) return kib * kKiB;
    status.ignore(4096, '\n');
  }
  return 0;
}

}  // namespace stoker
