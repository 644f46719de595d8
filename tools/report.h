// What a run measured, for people and for programs. A Phase is what happened between two moments: where its
// time went (kernels/base/stats.h) and what the experts did (SchedulerStats). Keys of the JSON form:
// tools/README.md.
#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/stats.h"
#include "kernels/base/timeline.h"
#include "scheduler/scheduler.h"

namespace stoker {

class Engine;

// What decided the speed. disk: reads were in flight nearly all the time. turns: for more of the time than there was
// something to compute, but not nearly all: each waited for the other. compute: neither of these.
enum class Bottleneck { disk, turns, compute };
std::string_view name(Bottleneck bottleneck);      // "disk"
std::string_view describe(Bottleneck bottleneck);  // "the disk was the bottleneck"

struct Phase {
  i64 tokens = 0;
  i64 wall_ns = 0;
  std::array<i64, kStages> stage_ns{};  // their sum is wall_ns
  SchedulerStats experts;
  std::vector<Timeline::LaneUse> lanes = {};  // none without a timeline

  f64 seconds() const { return static_cast<f64>(wall_ns) * 1e-9; }
  f64 tokens_per_second() const;
  f64 ms_per_token(Stage stage) const;
  f64 hit_rate() const;                 // of requests; 1 when there were none
  f64 disk_busy_share() const;          // of wall time: at least one read was in flight
  f64 compute_share() const;            // of wall time: not waiting for the disk
  f64 disk_gb_per_second() const;       // bytes read / wall time
  f64 disk_gb_per_second_busy() const;  // bytes read / busy time
  Bottleneck bottleneck() const;

  Phase& operator+=(const Phase& other);
};

class PhaseMeter {
 public:
  explicit PhaseMeter(const Engine& engine);  // starts
  Phase stop(i64 tokens) const;

 private:
  const Engine& engine_;
  i64 start_ns_;
  std::array<i64, kStages> stage_ns_;
  SchedulerStats experts_;
};

struct RunReport {
  Phase prompt, decode;
  u64 logits_hash = 0;
  u64 seed = 0;
};

nlohmann::ordered_json to_json(const Phase& phase);
// Footprint, slots, threads, I/O path, peak RSS.
nlohmann::ordered_json engine_json(const Engine& engine);

// Predictor, its scores so far, and what the governor makes of prefetch.
nlohmann::ordered_json prediction_json(const Engine& engine);
void note_prediction(const Engine& engine, const Phase& phase);  // nothing when nothing is predicted

// Draws recall by layer; nothing when `path` is empty. Throws Error when nothing was predicted.
void plot_recall(const Engine& engine, const std::string& path);

void note_run_report(const Engine& engine, const RunReport& report);
// --perf: per stage of the decode phase time, bytes of weights and GB/s, and what share that is of the memory's speed
// (0: not measured); and how idle each lane was.
void note_perf_table(const Engine& engine, const Phase& decode, f64 memory_gb_per_second);

// What this machine's cores can read from memory, GB/s (scheduler/memory_probe). Before a model takes the memory. 0, with
// a note, when there is not enough even so.
f64 measure_memory_roof(int threads);

// Most memory this process ever had resident (VmHWM), bytes; 0 when the kernel does not tell.
i64 peak_rss_bytes();

}  // namespace stoker
