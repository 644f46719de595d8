#include "tools/serve/metrics.h"

#include <unistd.h>

#include <fstream>
#include <utility>

#include "runtime/engine.h"
#include "tools/serve/live.h"

namespace stoker {

namespace {

// A metric's heading is followed by one sample, or by several that differ in a label.
class Page {
 public:
  void counter(std::string_view name, std::string_view help, f64 value) { one("counter", name, help, value); }
  void gauge(std::string_view name, std::string_view help, f64 value) { one("gauge", name, help, value); }
  void heading(std::string_view type, std::string_view name, std::string_view help) {
    text += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n", name, help, type);
  }
  void sample(std::string_view name, std::string_view label, std::string_view of, f64 value) {
    text += fmt::format("{}{{{}=\"{}\"}} {}\n", name, label, of, value);
  }
  std::string text;

 private:
  void one(std::string_view type, std::string_view name, std::string_view help, f64 value) {
    heading(type, name, help);
    text += fmt::format("{} {}\n", name, value);
  }
};

f64 ratio(f64 a, f64 b) { return b > 0 ? a / b : 0; }
f64 number(i64 value) { return static_cast<f64>(value); }
f64 seconds(i64 ns) { return number(ns) / 1e9; }

void requests(Page& p, const BatcherStatus& s, const std::map<int, i64>& answers) {
  f64 busy = 0;
  for (const BatcherStatus::Slot& slot : s.slots) busy += slot.busy ? 1 : 0;
  p.counter("llamacpp:prompt_tokens_total", "Prompt tokens computed.", number(s.prompt_tokens));
  p.counter("llamacpp:prompt_tokens_cached_total", "Prompt tokens met in a slot's cache.", number(s.cached_tokens));
  p.counter("llamacpp:prompt_seconds_total", "Time of prompts, sums over requests.", s.prompt_seconds);
  p.counter("llamacpp:tokens_predicted_total", "Tokens generated.", number(s.generated_tokens));
  p.counter("llamacpp:tokens_predicted_seconds_total", "Time of generation, sums over requests.", s.generate_seconds);
  p.counter("llamacpp:n_decode_total", "Passes that generated.", number(s.decode_passes));
  p.counter("llamacpp:n_tokens_max", "Longest sequence so far, in tokens.", number(s.most_held));
  p.gauge("llamacpp:n_busy_slots_per_decode", "Sequences per generating pass.", ratio(number(s.decode_rows), number(s.decode_passes)));
  p.gauge("llamacpp:prompt_tokens_seconds", "Prompt tokens per second of a request.", ratio(number(s.prompt_tokens), s.prompt_seconds));
  p.gauge("llamacpp:predicted_tokens_seconds", "Tokens per second of a request.", ratio(number(s.generated_tokens), s.generate_seconds));
  p.gauge("llamacpp:requests_processing", "Requests that have a slot.", busy);
  p.gauge("llamacpp:requests_deferred", "Requests that wait for one.", number(s.waiting));
  p.gauge("stoker:slots", "Requests that can have a slot.", number(static_cast<i64>(s.slots.size())));
  p.counter("stoker:requests_failed_total", "Requests that ended with an error of the engine.", number(s.failures));
  p.heading("counter", "stoker:http_responses_total", "Answers by HTTP status.");
  for (auto [status, count] : answers) p.sample("stoker:http_responses_total", "status", fmt::to_string(status), number(count));
}

void token_gaps(Page& p, const LatencyHistogram& gaps) {
  constexpr std::string_view kName = "stoker:inter_token_seconds";
  p.heading("histogram", kName, "Time between two tokens of a sequence.");
  i64 sum = 0;
  std::string bucket = fmt::format("{}_bucket", kName);
  for (size_t i = 0; i < gaps.counts.size(); i++) {
    sum += gaps.counts[i];
    p.sample(bucket, "le", i < gaps.kUpTo.size() ? fmt::to_string(gaps.kUpTo[i]) : "+Inf", number(sum));
  }
  p.text += fmt::format("{0}_sum {1}\n{0}_count {2}\n", kName, gaps.seconds, sum);
}

// The label `tier` is where an expert was looked for, or its bytes came from.
void experts(Page& p, const SchedulerStats& e) {
  auto tier = [&](std::string_view name, std::string_view help, std::string_view of, f64 value) {
    p.heading("counter", name, help);
    p.sample(name, "tier", of, value);
  };
  tier("stoker:expert_hits_total", "Wanted experts that were in this tier.", "ram", number(e.hits));
  p.sample("stoker:expert_hits_total", "tier", "vram", number(e.device_hits));
  tier("stoker:expert_misses_total", "Wanted experts that were not in this tier.", "ram", number(e.misses));
  tier("stoker:expert_evictions_total", "Experts that gave up their place in this tier.", "ram", number(e.evictions));
  tier("stoker:expert_bytes_total", "Bytes of experts that were taken from this tier.", "ram", number(e.hit_bytes));
  p.sample("stoker:expert_bytes_total", "tier", "disk", number(e.bytes_read));
  tier("stoker:stall_seconds_total", "Time with nothing to compute until this tier delivers.", "disk", seconds(e.wait_ns));
  p.counter("stoker:hinted_bytes_total", "Bytes read because of predictions.", number(e.predicted_bytes));
  p.counter("stoker:hinted_useful_bytes_total", "Bytes of these that were wanted.", number(e.useful_bytes));
  p.counter("stoker:hint_upgrades_total", "Misses whose read a prediction had begun.", number(e.upgrades));
  p.counter("stoker:expert_promotions_total", "Experts that moved from RAM to VRAM.", number(e.promotions));
  p.heading("counter", "stoker:link_bytes_total", "Bytes of experts that went to VRAM (up) and came back (down).");
  p.sample("stoker:link_bytes_total", "direction", "up", number(e.uploaded_bytes));
  p.sample("stoker:link_bytes_total", "direction", "down", number(e.downloaded_bytes));
  p.counter("stoker:disk_busy_seconds_total", "Time with a read in flight: its rate is the share of time that the disk is busy.", seconds(e.disk_busy_ns));
}

void governor(Page& p, const BatcherStatus& s) {
  using State = Governor::State;
  p.heading("gauge", "stoker:governor_state", "Whether reading ahead pays: 1 at the state it is in.");
  for (State state : {State::fixed_off, State::fixed_on, State::measuring, State::paying, State::not_paying})
    p.sample("stoker:governor_state", "state", name(state), s.prefetch == state ? 1 : 0);
  p.gauge("stoker:governor_gain_ratio", "Tokens per second with reading ahead over without, less 1, as last compared.", s.prefetch_gain);
}

void machine(Page& p, const BatcherStatus& s, const EngineFootprint& f) {
  p.heading("counter", "stoker:stage_seconds_total", "Where the engine's time went.");
  for (i64 i = 0; i < kStages; i++) {
    f64 spent = seconds(s.stage_ns[static_cast<size_t>(i)]);
    p.sample("stoker:stage_seconds_total", "stage", name(static_cast<Stage>(i)), spent);
  }
  p.gauge("stoker:experts", "Routed experts of the model.", number(f.expert_total));
  p.gauge("stoker:expert_slots", "Experts that memory has room for.", number(f.expert_slots));
  i64 vram_slots = 0;
  for (const DeviceFootprint& device : f.devices) vram_slots += device.expert_slots;
  p.gauge("stoker:vram_expert_slots", "Experts that devices have room for.", number(vram_slots));
  p.gauge("stoker:vram_experts", "Experts that are there.", number(s.experts_on_devices));
  p.gauge("stoker:expert_budget_bytes", "Memory for routed experts.", number(f.expert_budget_bytes));
  p.gauge("stoker:resident_bytes", "Memory of the weights that every token reads.", number(f.resident_bytes));
  i64 pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  p.gauge("process_resident_memory_bytes", "Memory of the process.", number(resident * ::sysconf(_SC_PAGESIZE)));
}

void limits(Page& p, const MachineLimits& limits) {
  constexpr std::string_view kName = "stoker:limit_bytes_per_second";
  bool headed = false;
  for (auto [resource, limit] : {std::pair("disk", limits.disk), std::pair("dram", limits.dram), std::pair("link", limits.link)}) {
    if (limit <= 0) continue;
    if (!std::exchange(headed, true))
      p.heading("gauge", kName, "What this machine was measured to do (--machine); link: of all devices, both directions.");
    p.sample(kName, "resource", resource, limit);
  }
}

}  // namespace

std::string metrics_text(const Service& service, const std::map<int, i64>& answers) {
  BatcherStatus status = service.batcher().status();
  Page p;
  requests(p, status, answers);
  token_gaps(p, status.token_gaps);
  experts(p, status.experts);
  governor(p, status);
  machine(p, status, status.footprint);
  limits(p, machine_limits(service));
  p.gauge("process_start_time_seconds", "When the model was loaded, in seconds since 1970.", number(service.started()));
  return p.text;
}

}  // namespace stoker
