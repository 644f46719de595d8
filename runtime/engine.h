// Engine: a model that answers. Wires file, plan, reader, scheduler, weights and forward pass together.
// Owner: one thread, the one that constructs it (it becomes compute worker 0).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "kernels/base/stats.h"
#include "kernels/base/threads.h"
#include "kernels/device/open_devices.h"
#include "kernels/device/stream.h"
#include "runtime/forward.h"
#include "runtime/hparams.h"
#include "runtime/interrupted.h"
#include "runtime/kv_cache.h"
#include "runtime/token_bytes.h"
#include "scheduler/plan.h"
#include "scheduler/policy/governor.h"
#include "scheduler/policy/predictor.h"
#include "scheduler/scheduler.h"
#include "scheduler/tiers/open_reader.h"

namespace stoker {

class Gguf;
class Tokenizer;

// Group-limited routing: by the file's keys, off, or given.
struct ExpertGroups {
  enum class Mode { file, off, fixed } mode = Mode::file;
  i64 groups = 1, used = 1;
};

struct EngineOptions {
  std::string model_path;
  i64 ram_bytes = 0;   // for routed experts; 0: what is free, less a margin
  DeviceChoice devices;         // that compute beside the CPU
  i64 split_heads = 16384;      // positions behind which two devices share the heads of a layer; 0: never
  std::vector<i64> vram_bytes;  // for weights and KV cache on each, or one for all; empty: what is free
  i64 context = 4096;  // positions per sequence
  i64 sequences = 1;
  i64 chunk = 0;       // most rows in one forward pass; 0: chosen (piece_size.h)
  i64 chunk_in_memory = 0;  // the same where all experts fit; 0: chunk. Each chunk of a prompt reads again what does not
  int threads = 0;     // 0: one per physical core
  bool exact = false;  // float activations everywhere
  std::optional<CacheType> cache_type;  // none: F16, or F32 when exact
  std::optional<IsaLevel> isa;  // cap; none: the best this CPU has
  IoPath io = IoPath::automatic;
  ExpertGroups expert_groups;
  std::string policy = "auto";  // which experts stay in memory: a name of scheduler/policy/make_policy.h
  std::string popularity_path;     // "": none; what is known of earlier runs. It need not exist
  bool save_popularity = false;    // at the end, there
  i64 ring_depth = Plan{}.ring_depth;    // reads in flight
  i64 piece_bytes = Plan{}.piece_bytes;  // of one read; a multiple of what the disk needs
  bool preload = true;  // read all experts before the first token when they fit, else fill empty slots beside the tokens
  bool warm = false;    // those that fit, beside the first tokens: see Engine::warm
  std::string routing;     // "": the model's gate; else what open_routing() takes
  std::string trace_path;  // "": none; where to record what the router chooses
  bool trace_details = false;  // and where experts were, how long layers waited, what was guessed
  // Without a slot for every expert: what coming layers will want, guessed so many layers ahead, and whether guesses
  // are read.
  PredictorKind predictor = PredictorKind::gate_shared;
  i64 lookahead = 1;  // 0: the governor chooses
  GovernorOptions prefetch;
  bool timeline = false;  // records what cores, devices, links and disk do
};

// Called now and then while loading; returning false gives up (the constructor then throws Interrupted).
using LoadProgress = std::function<bool(std::string_view stage, i64 done_bytes, i64 total_bytes)>;

struct DeviceFootprint {
  std::string id;          // "host:0"
  bool lost = false;       // then it has nothing of what follows
  // Of its memory: dense FFN or shared experts of so many layers, attention of others or the same, rows of the output head.
  i64 resident_bytes = 0;
  i64 home_layers = 0;
  i64 attention_layers = 0;
  i64 head_rows = 0;       // each is a word of the vocabulary
  i64 kv_bytes = 0;        // of its memory: the KV cache of those with attention, and copies of those next
  i64 shared_layers = 0;   // of other devices, whose last heads it computes behind long contexts
  i64 expert_bytes = 0;    // of its memory, for experts
  i64 expert_slots = 0;
  i64 experts = 0;         // there now
};

// What this engine holds now, for reports. Bytes. A lost device moves weights into RAM, and memory that the machine refuses, or
// gets back for them, has no experts.
struct EngineFootprint {
  i64 resident_bytes = 0;  // weights outside the routed experts, in RAM: without those that devices have
  i64 kv_bytes = 0;
  i64 scratch_bytes = 0;
  i64 expert_budget_bytes = 0;
  i64 expert_slots = 0;
  i64 expert_total = 0;        // experts in the model
  i64 expert_total_bytes = 0;
  std::vector<DeviceFootprint> devices = {};
};

class Engine {
 public:
  // Throws Error: bad file, budget too small (names the number that would do), out of memory.
  explicit Engine(const EngineOptions& options, const LoadProgress& progress = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const EngineOptions& options() const;
  const Gguf& gguf() const;
  const Hparams& hparams() const;
  // Throws Error when the file has no tokenizer.
  const Tokenizer& tokenizer() const;
  // Whether a generated token ends the text; false for all when the file has no tokenizer.
  bool is_end(i32 token) const;
  const Plan& plan() const;
  EngineFootprint footprint() const;
  TokenBytes token_bytes() const;  // what decoding a token reads
  int threads() const;
  IsaLevel isa() const;
  CacheType cache_type() const;
  std::string io_description() const;  // "io_uring, O_DIRECT, registered"

  KvCache& sequence(SequenceId id);  // 0 .. sequences - 1

  // Computes the rows (at most options().chunk) and appends them to their sequences' caches; each sequence's cache
  // must be at the first row's position. `logits` gets [number of rows that want them, vocab] in row order.
  // Failure (a read failed, a device is lost, or *interrupt was set, which is seen at the next step inside a layer):
  // the caches are as before the call and the
  // engine goes on working.
  Status forward(std::span<const BatchRow> rows, std::span<f32> logits,
                 const std::atomic<bool>* interrupt = nullptr, const std::function<void()>& between = {});
  // The same in the middle of a pass, called by its `between`: at most a row for each of other sequences. Only
  // for an engine of several sequences that neither records nor replays routes: those follow one pass at a time.
  Status forward_between(std::span<const BatchRow> rows, std::span<f32> logits);
  bool has_between() const;

  // body(index) for every index of [0, count), shared by the compute workers: between passes, or where forward_between()
  // may be called. For what rows have to themselves once their logits are there.
  void for_each(i64 count, FunctionRef<void(i64 index)> body);

  // Goes on reading experts that fit (EngineOptions::warm): between passes, or in a pass's `between`. Experts that have been
  // asked for, and all; equal when there is nothing to do.
  Scheduler::Warmth warm();

  const StageTimer& timer() const;
  // None unless asked for. Lanes: "CPU" (passes alone: not what happens between two), "SSD", and of each device its own.
  const Timeline* timeline() const;
  const SchedulerStats& scheduler_stats() const;
  ResidencyView residency() const;
  i64 experts_on_devices() const;  // now
  const Governor& governor() const;
  const Predictor* predictor() const;  // none: nothing is predicted

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace stoker
