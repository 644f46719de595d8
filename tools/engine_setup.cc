#include "tools/engine_setup.h"

#include "kernels/base/log.h"
#include "tools/device_option.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"

namespace stoker {

namespace {

IsaLevel isa_level(std::string_view text) {
  for (IsaLevel level : {IsaLevel::ref, IsaLevel::avx2, IsaLevel::avx512}) {
    if (name(level) == text) return level;
  }
  fail("--isa {}: no such level", text);
}

CacheType cache_type(std::string_view text) {
  for (CacheType type : {CacheType::F16, CacheType::F32, CacheType::Q8_0}) {
    if (name(type) == text) return type;
  }
  fail("--cache-type {}: no such type", text);
}

}  // namespace

PredictorKind predictor_kind(const Options& o) {
  for (PredictorKind kind : kPredictorKinds)
    if (name(kind) == o.predictor) return kind;
  fail("--predictor {}: no such predictor", o.predictor);
}

GovernorOptions governor_options(const Options& o) {
  PrefetchMode mode = o.prefetch == "on" ? PrefetchMode::on : o.prefetch == "off" ? PrefetchMode::off : PrefetchMode::automatic;
  return {.mode = mode,
          .window_tokens = o.prefetch_window,
          .least_gain = o.prefetch_gain / 100,
          .threshold = static_cast<f32>(o.prefetch_threshold)};
}

EngineOptions engine_options(const Options& o) {
  EngineOptions e;
  e.model_path = o.model;
  e.ram_bytes = o.ram.bytes;
  e.devices = parse_device_choice(o.device);
  e.vram_bytes = parse_vram(o.vram);
  e.split_heads = o.split_heads;
  e.context = o.context;
  e.chunk = o.batch;
  e.threads = static_cast<int>(o.threads);
  e.exact = o.exact;
  if (!o.cache_type.empty()) e.cache_type = cache_type(o.cache_type);
  if (!o.isa.empty()) e.isa = isa_level(o.isa);
  e.io = o.io == "uring" ? IoPath::uring : o.io == "pread" ? IoPath::pread : IoPath::automatic;
  if (o.expert_groups == "off") {
    e.expert_groups.mode = ExpertGroups::Mode::off;
  } else if (parse_expert_groups(o.expert_groups, e.expert_groups.groups, e.expert_groups.used)) {
    e.expert_groups.mode = ExpertGroups::Mode::fixed;
  }
  e.policy = o.policy;
  e.popularity_path = o.popularity;
  e.ring_depth = o.ring_depth;
  e.piece_bytes = o.piece.bytes;
  e.preload = !o.no_preload;
  e.routing = o.routing;
  e.trace_path = o.trace_file;
  e.trace_details = o.trace_details;
  e.predictor = predictor_kind(o);
  e.lookahead = o.lookahead;
  e.prefetch = governor_options(o);
  e.timeline = o.perf || !o.timeline_file.empty();
  return e;
}

std::unique_ptr<Engine> load_engine(const EngineOptions& options,
                                    const std::function<void(std::string_view, i64, i64)>& told) {
  auto progress = [&](std::string_view stage, i64 done, i64 total) {
    if (told) told(stage, done, total);
    show_progress(stage, done, total, ProgressUnit::bytes);
    return !interrupt_flag().load();
  };
  auto engine = std::make_unique<Engine>(options, progress);
  clear_progress();
  EngineFootprint f = engine->footprint();
  log_info("{} threads, {}, {}; {} resident weights in RAM, {} KV cache, {} for {} of {} experts", engine->threads(),
           name(engine->isa()), engine->io_description(), human_bytes(f.resident_bytes),
           human_bytes(f.kv_bytes), human_bytes(f.expert_budget_bytes), f.expert_slots, f.expert_total);
  for (const DeviceFootprint& d : f.devices)
    log_info("{}: attention of {} layers, FFN of {}, {} of {} rows of the output head, {}, with {} of KV cache; {} for {} of {} experts",
             d.id, d.attention_layers, d.home_layers, d.head_rows, engine->hparams().vocab, human_bytes(d.resident_bytes),
             human_bytes(d.kv_bytes), human_bytes(d.expert_bytes), d.expert_slots, f.expert_total);
  for (const DeviceFootprint& d : f.devices)
    if (d.shared_layers > 0)
      log_info("{}: from {} positions on, half of the heads of {} layers at home elsewhere", d.id, options.split_heads, d.shared_layers);
  return engine;
}

}  // namespace stoker
