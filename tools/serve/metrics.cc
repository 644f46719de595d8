#include "tools/serve/metrics.h"

namespace stoker {

namespace {

class Page {
 public:
  void counter(std::string_view name, std::string_view help, f64 value) { row("counter", name, help, value); }
  void gauge(std::string_view name, std::string_view help, f64 value) { row("gauge", name, help, value); }
  std::string text;

 private:
  void row(std::string_view type, std::string_view name, std::string_view help, f64 value) {
    text += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0} {3}\n", name, help, type, value);
  }
};

f64 ratio(f64 a, f64 b) { return b > 0 ? a / b : 0; }

}  // namespace

std::string metrics_text(const BatcherStatus& s) {
  auto number = [](i64 value) { return static_cast<f64>(value); };
  f64 busy = 0;
  for (const BatcherStatus::Slot& slot : s.slots) busy += slot.busy ? 1 : 0;
  Page p;
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
  p.counter("stoker:requests_failed_total", "Requests that ended with an error of the engine.", number(s.failures));
  p.counter("stoker:expert_hits_total", "Wanted experts that were in memory.", number(s.experts.hits));
  p.counter("stoker:expert_misses_total", "Wanted experts that had to be read.", number(s.experts.misses));
  p.counter("stoker:expert_evictions_total", "Experts that gave up their place.", number(s.experts.evictions));
  p.counter("stoker:expert_read_bytes_total", "Bytes of experts read from disk.", number(s.experts.bytes_read));
  p.counter("stoker:disk_busy_seconds_total", "Time with a read in flight.", number(s.experts.disk_busy_ns) / 1e9);
  p.counter("stoker:disk_wait_seconds_total", "Time with nothing to compute until a read ends.", number(s.experts.wait_ns) / 1e9);
  return p.text;
}

}  // namespace stoker
