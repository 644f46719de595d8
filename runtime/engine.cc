#include "runtime/engine.h"

#include <algorithm>
#include <filesystem>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "kernels/ops.h"
#include "runtime/arch/deepseek2.h"
#include "runtime/counting_router.h"
#include "runtime/engine_devices.h"
#include "runtime/forward.h"
#include "runtime/lookahead.h"
#include "runtime/piece_size.h"
#include "runtime/recording_router.h"
#include "runtime/replay_router.h"
#include "runtime/router.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/weights.h"
#include "scheduler/machine.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/model_file/gguf.h"
#include "scheduler/planner.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/popularity_file.h"
#include "scheduler/tiers/slab.h"
#include "scheduler/trace/open_routing.h"

namespace stoker {

namespace {

constexpr i64 kMaxContext = i64{1} << 30;  // positions are 32-bit numbers

void apply(const ExpertGroups& wish, Hparams& h) {
  if (wish.mode == ExpertGroups::Mode::file) return;
  h.groups = wish.mode == ExpertGroups::Mode::off ? 1 : wish.groups;
  h.groups_used = wish.mode == ExpertGroups::Mode::off ? 1 : wish.used;
  if (h.groups < 1 || h.experts % h.groups != 0)
    fail("--expert-groups: {} experts do not form {} groups", h.experts, h.groups);
  if (h.groups_used < 1 || h.groups_used > h.groups || h.groups_used * (h.experts / h.groups) < h.top_k)
    fail("--expert-groups: {} of {} groups hold fewer than the {} experts that a token uses", h.groups_used, h.groups,
         h.top_k);
}

Hparams read_hparams(const Gguf& gguf, const EngineOptions& options) {
  Hparams h = read_deepseek2(gguf);
  if (h.moe_layers() == 0) fail("{}: the model has no layer with experts", options.model_path);
  apply(options.expert_groups, h);
  return h;
}

// Models without one can still be fed with token ids.
std::optional<Tokenizer> read_tokenizer(const Gguf& gguf, const Hparams& h) {
  if (gguf.find("tokenizer.ggml.model") == nullptr) return std::nullopt;
  Tokenizer tokenizer = Tokenizer::from_gguf(gguf);
  if (tokenizer.vocab_size() > h.vocab)
    fail("{}: the tokenizer has {} tokens, but token_embd.weight has only {} rows", gguf.files().front().path,
         tokenizer.vocab_size(), h.vocab);
  return tokenizer;
}

std::unique_ptr<Reader> open_files(const Gguf& gguf, const EngineOptions& options) {
  std::vector<std::string> paths;
  for (const GgufFileInfo& file : gguf.files()) paths.push_back(file.path);
  return open_reader(paths, {.path = options.io, .depth = options.ring_depth, .max_piece_bytes = options.piece_bytes});
}

struct ExpertBudget {
  i64 bytes = 0;
  std::string origin;
};

ExpertBudget choose_budget(const EngineOptions& options, i64 resident_bytes, i64 kv_bytes) {
  if (options.ram_bytes > 0) return {options.ram_bytes, "--ram"};
  Machine machine = read_machine();
  return {default_expert_budget(machine, resident_bytes, kv_bytes), "what is free: " + machine.limited_by};
}

}  // namespace

struct Engine::Impl {
  EngineOptions options;
  std::unique_ptr<Timeline> timeline;  // or none
  Gguf gguf;
  Hparams hparams;
  ExpertTable experts;
  std::optional<Tokenizer> tokenizer;
  std::unique_ptr<Reader> reader;
  Plan plan;
  std::unique_ptr<EngineDevices> devices;
  std::unique_ptr<Weights> weights;
  std::unique_ptr<WorkerPool> workers;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Scheduler> scheduler;
  std::optional<Popularity> popularity;  // of earlier runs
  CountingRouter* counter = nullptr;     // none: nothing is to be saved
  std::vector<std::unique_ptr<Router>> routers;  // each stands around the one before; the last is used
  ReplayRouter* replay = nullptr;                // one of these, or none
  RecordingRouter* recorder = nullptr;           // likewise
  std::unique_ptr<Lookahead> lookahead;
  std::unique_ptr<Forward> forward;
  std::unique_ptr<Forward> between;  // with scratch of its own; none where nothing can come between
  std::vector<std::unique_ptr<KvCache>> sequences;
  std::vector<KvCache*> caches;  // the same, as forward wants them
  StageTimer timer{steady_clock()};
  bool chunk_is_given = false;

  explicit Impl(const EngineOptions& wanted)
      : options(wanted),
        gguf(Gguf::open(wanted.model_path)),
        hparams(read_hparams(gguf, wanted)),
        experts(ExpertTable::from_gguf(gguf, hparams.expert_shape())),
        tokenizer(read_tokenizer(gguf, hparams)),
        reader(open_files(gguf, wanted)) {
    if (options.context < 1 || options.sequences < 1) fail("a context needs at least one position (-c)");
    if (options.context > kMaxContext) fail("a context has at most {} positions (-c)", kMaxContext);
    if (cache_type() == CacheType::Q8_0 && hparams.cache_row() % 32 != 0)
      fail("--cache-type q8_0: a row of {} values is not made of blocks of 32; use f16", hparams.cache_row());
    chunk_is_given = options.chunk > 0;
    options.chunk = std::min(chunk_is_given ? options.chunk : kPiece, options.context);
    i64 rows = std::max(options.chunk, options.sequences);
    devices = std::make_unique<EngineDevices>(options.devices, hparams,
                                              DeviceAttention::Limits{.rows = rows,
                                                                      .generated_rows = Forward::generated_rows(rows, options.sequences),
                                                                      .context = options.context,
                                                                      .sequences = options.sequences,
                                                                      .cache = cache_type(),
                                                                      .exact = options.exact},
                                              options.split_heads,
                                              experts);
    if (!options.timeline) return;
    timeline = std::make_unique<Timeline>();
    timer.record(*timeline, "CPU");
    devices->record(*timeline);
  }

  void make_plan_within_budget() {
    std::vector<DeviceRequest> requests = devices->requests(options.vram_bytes, Weights::shapes(gguf, hparams));
    i64 copies = is_gate(options.predictor) ? GateCopies::bytes_needed(hparams) : 0;
    i64 weights_in_ram = Weights::bytes_needed(gguf, hparams, devices->homes());
    ExpertBudget budget = choose_budget(options, weights_in_ram + copies + devices->host_device_bytes(), kv_bytes());
    plan = make_plan(experts, {.ram_bytes = budget.bytes,
                               .alignment = plan_alignment(*reader, experts),
                               .ring_depth = options.ring_depth,
                               .piece_bytes = options.piece_bytes,
                               .devices = std::move(requests)});
    if (!chunk_is_given && !plan.all_resident && plan.devices.empty()) enlarge_chunk(weights_in_ram + copies + kv_bytes());
    log_info("experts: {:.2f} GiB budget ({}), {} of {} experts fit", static_cast<f64>(budget.bytes) / kGiB,
             budget.origin, plan.total_slots(), experts.moe_layers() * experts.experts_per_layer());
    if (plan.all_resident && options.chunk_in_memory > 0) options.chunk = std::min(options.chunk, options.chunk_in_memory);
    std::string warning = plan_warning(experts, plan);
    if (!warning.empty()) log_warning("{}", warning);
  }

  // For a prompt whose pieces read experts again and again. `other_bytes`: what is still going to be taken beside experts.
  void enlarge_chunk(i64 other_bytes) {
    const int threads = options.threads > 0 ? options.threads : physical_cores();
    options.chunk = largest_piece(options.context, read_machine().available_bytes - plan.ram_bytes - other_bytes, [&](i64 chunk) {
      return Forward::bytes_needed(cpu_ops(), hparams, forward_limits(chunk), threads);
    });
    log_info("prompts pass in pieces of {} tokens (-b), each of which reads what is not in memory", options.chunk);
  }

  Forward::Limits forward_limits(i64 rows) const {
    return {.rows = rows, .sequences = options.sequences, .context = options.context, .exact = options.exact};
  }

  CacheType cache_type() const { return options.cache_type.value_or(options.exact ? CacheType::F32 : CacheType::F16); }
  i64 kv_bytes() const {
    return options.sequences * KvCache::bytes_needed(hparams, options.context, cache_type());
  }

  // Weights are read, also for devices, by other threads before the workers exist, because the pool pins this thread to its
  // core and threads that are created later would inherit that.
  void load(const LoadProgress& progress) {
    read_known();
    make_routers();  // first, because a wrong trace should not cost minutes of reading
    const i64 total = progress ? Weights::file_bytes(gguf, hparams) : 0;
    i64 done = 0;
    auto reading = [&](i64 bytes) { return !progress || progress("weights", done += bytes, total); };
    weights = std::make_unique<Weights>(gguf, hparams, devices->homes(), reading);
    devices->allocate(plan, *weights, options.isa.value_or(best_isa_level()), reading);
    workers = std::make_unique<WorkerPool>(WorkerPool::Options{.workers = options.threads});
    stream = std::make_unique<Stream>(*workers, options.isa.value_or(best_isa_level()));
    scheduler = std::make_unique<Scheduler>(
        experts, plan, make_policy(options.policy, plan, experts.experts_per_layer(), experts.top_k(), known()), *reader,
        steady_clock(), SlabOptions{.fault_in = fault_in_if_available}, devices->copier());
    if (timeline) scheduler->record(*timeline, "SSD");
    look_ahead();
    if (!plan.all_resident && options.preload) scheduler->fill_empty_slots();
    forward = make_forward(options.chunk);
    if (options.sequences > 1 && routers.size() == 1) between = make_forward(options.sequences);
    for (i64 i = 0; i < options.sequences; i++) {
      sequences.push_back(std::make_unique<KvCache>(hparams, options.context, cache_type()));
      caches.push_back(sequences.back().get());
    }
    if (plan.all_resident && options.preload && !options.warm) preload(progress);
    // From here on no memory is allocated per token.
  }

  std::unique_ptr<Forward> make_forward(i64 rows) {
    return std::make_unique<Forward>(cpu_ops(), *stream, hparams, *weights, *scheduler, *routers.back(),
                                     forward_limits(rows), lookahead.get(), devices->lanes());
  }

  void make_routers() {
    routers.push_back(std::make_unique<GateRouter>(cpu_ops(), hparams, options.chunk));
    if (!options.routing.empty()) {
      std::unique_ptr<TraceSource> source = open_routing({.what = options.routing, .shape = trace_header(hparams)});
      auto router = std::make_unique<ReplayRouter>(*routers.back(), hparams, *source, options.routing, emulated_gates());
      replay = router.get();
      routers.push_back(std::move(router));
    }
    if (options.save_popularity && !options.popularity_path.empty()) {
      auto router = std::make_unique<CountingRouter>(*routers.back(), hparams, popularity.value_or(Popularity()));
      counter = router.get();
      routers.push_back(std::move(router));
    }
    if (!options.trace_path.empty())
      recorder = &static_cast<RecordingRouter&>(*routers.emplace_back(std::make_unique<RecordingRouter>(
          *routers.back(), hparams, options.trace_path, options.chunk, options.trace_details)));
  }

  const Popularity* known() const { return popularity ? &*popularity : nullptr; }

  // What cannot be used is left alone, and not replaced at the end: it may be somebody's.
  void read_known() {
    if (options.popularity_path.empty() || !std::filesystem::exists(options.popularity_path)) return;
    try {
      popularity = read_popularity(options.popularity_path, trace_header(hparams).model_hash, hparams.moe_layers(), hparams.experts);
    } catch (const Error& e) {
      log_warning("{}; it is not used", e.what());
      options.save_popularity = false;
    }
  }

  void save_popularity() const {
    if (counter == nullptr || counter->popularity().tokens(0) == 0) return;
    try {
      write_popularity(options.popularity_path, {trace_header(hparams).model_hash, counter->popularity()});
    } catch (const Error& e) {
      log_warning("{}", e.what());
    }
  }

  std::optional<EmulatedLookahead::Options> emulated_gates() const {
    if (plan.all_resident || !is_gate(options.predictor)) return {};
    return EmulatedLookahead::Options{.quality = gate_quality(options.predictor), .distances = Predictor::kMaxDistance};
  }

  // With all experts in memory there is nothing to fetch early.
  void look_ahead() {
    if (plan.all_resident || options.predictor == PredictorKind::none) return;
    lookahead = std::make_unique<Lookahead>(cpu_ops(), *stream, hparams, *weights, *scheduler,
                                            Forecaster::Options{options.predictor, options.lookahead}, replay);
    scheduler->set_prefetch(options.prefetch);
    if (recorder != nullptr) recorder->watch(lookahead.get());
  }

  void preload(const LoadProgress& progress) {
    struct Context {
      const LoadProgress& progress;
      bool stopped;
    } context{progress, false};
    auto report = [](i64 done, i64 total, void* opaque) {
      Context& c = *static_cast<Context*>(opaque);
      c.stopped = c.progress && !c.progress("experts", done, total);
      return !c.stopped;
    };
    Status status = scheduler->preload(report, &context);
    if (context.stopped) throw Interrupted();
    if (!status.ok()) throw Error(status.message());
  }
};

Engine::Engine(const EngineOptions& options, const LoadProgress& progress) : impl_(std::make_unique<Impl>(options)) {
  impl_->make_plan_within_budget();
  impl_->load(progress);
}

Engine::~Engine() { impl_->save_popularity(); }

const EngineOptions& Engine::options() const { return impl_->options; }
const Gguf& Engine::gguf() const { return impl_->gguf; }
const Hparams& Engine::hparams() const { return impl_->hparams; }
bool Engine::is_end(i32 token) const { return impl_->tokenizer && impl_->tokenizer->is_end(token); }

const Tokenizer& Engine::tokenizer() const {
  if (!impl_->tokenizer) fail("{}: the file has no tokenizer; give token ids instead", impl_->options.model_path);
  return *impl_->tokenizer;
}
const Plan& Engine::plan() const { return impl_->plan; }
int Engine::threads() const { return impl_->workers->size(); }
IsaLevel Engine::isa() const { return impl_->stream->level(); }
CacheType Engine::cache_type() const { return impl_->cache_type(); }
std::string Engine::io_description() const { return impl_->reader->describe(); }
const StageTimer& Engine::timer() const { return impl_->timer; }
const Timeline* Engine::timeline() const { return impl_->timeline.get(); }
const SchedulerStats& Engine::scheduler_stats() const { return impl_->scheduler->stats(); }

ResidencyView Engine::residency() const { return impl_->scheduler->view(); }

i64 Engine::experts_on_devices() const {
  i64 count = 0;
  for (size_t d = 0; d < impl_->plan.devices.size(); d++) count += impl_->scheduler->experts_on_device(static_cast<i64>(d));
  return count;
}

const Governor& Engine::governor() const { return impl_->scheduler->governor(); }
const Predictor* Engine::predictor() const {
  return impl_->lookahead ? &impl_->lookahead->predictor() : nullptr;
}

EngineFootprint Engine::footprint() const {
  const Impl& e = *impl_;
  std::vector<DeviceFootprint> devices;
  for (size_t i = 0; i < e.plan.devices.size(); i++) {
    if (e.scheduler->device_lost(static_cast<i64>(i))) {
      devices.push_back({.id = e.devices->id(i), .lost = true});
      continue;
    }
    devices.push_back({.id = e.devices->id(i),
                       .resident_bytes = e.devices->layers(i).weights.bytes(),
                       .home_layers = e.devices->layers(i).weights.ffn_layers(),
                       .attention_layers = e.devices->layers(i).weights.attention_layers(),
                       .head_rows = e.devices->layers(i).head ? e.devices->layers(i).head->rows() : 0,
                       .kv_bytes = e.devices->layers(i).kv_bytes() + e.devices->shared_bytes(i),
                       .shared_layers = e.devices->shared_layers(i),
                       .expert_bytes = e.plan.device_arena_bytes(i),
                       .expert_slots = e.plan.device_experts(i),
                       .experts = e.scheduler->experts_on_device(static_cast<i64>(i))});
  }
  return {.resident_bytes = e.weights->bytes() + (e.lookahead ? e.lookahead->bytes() : 0),
          .kv_bytes = e.kv_bytes(),
          .scratch_bytes = e.forward->scratch_bytes() + (e.between ? e.between->scratch_bytes() : 0) + e.devices->host_bytes(),
          .expert_budget_bytes = e.plan.ram_bytes - (e.plan.arena_bytes() - e.scheduler->ram_bytes()),
          .expert_slots = e.scheduler->ram_slots(),
          .expert_total = e.experts.moe_layers() * e.experts.experts_per_layer(),
          .expert_total_bytes = e.experts.total_bytes(),
          .devices = std::move(devices)};
}

TokenBytes Engine::token_bytes() const {
  return stoker::token_bytes(*impl_->weights, impl_->experts, *impl_->sequences.front());
}

KvCache& Engine::sequence(SequenceId id) {
  CHECK(id.valid() && id.value < static_cast<i32>(impl_->sequences.size()));
  return *impl_->sequences[static_cast<size_t>(id.value)];
}

Status Engine::forward(std::span<const BatchRow> rows, std::span<f32> logits, const std::atomic<bool>* interrupt,
                       const std::function<void()>& between) {
  Status ready = impl_->devices->restore_lost(*impl_->weights, *impl_->scheduler, interrupt);
  return ready.ok() ? impl_->forward->run(rows, impl_->caches, logits, impl_->timer, interrupt, between) : ready;
}

Scheduler::Warmth Engine::warm() {
  return impl_->options.preload && impl_->options.warm ? impl_->scheduler->warm() : Scheduler::Warmth{};
}

bool Engine::has_between() const { return impl_->between != nullptr; }

Status Engine::forward_between(std::span<const BatchRow> rows, std::span<f32> logits) {
  CHECK(has_between());
  impl_->scheduler->end_pass(0, 0, false);  // what it has counted until here is the outer pass's
  Status ready = impl_->devices->restore_lost(*impl_->weights, *impl_->scheduler, nullptr);
  return ready.ok() ? impl_->between->run(rows, impl_->caches, logits, impl_->timer, nullptr) : ready;
}

void Engine::for_each(i64 count, FunctionRef<void(i64)> body) {
  impl_->workers->for_each(count, [&](i64 index, int) { body(index); });
}

}  // namespace stoker
