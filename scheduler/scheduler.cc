#include "scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log.h"
#include "scheduler/policy/residency_policy.h"
#include "scheduler/streamer.h"
#include "scheduler/tiers/slab.h"
#include "scheduler/tiers/slice.h"

namespace stoker {

namespace {

constexpr i64 kWaitSliceNs = 100'000'000;
constexpr i64 kPredictedPerHint = 4;   // reads that one hint may start
constexpr i64 kPreloadTransfers = 32;  // experts under way at a time: enough to keep every queue full

SlabOptions complete(SlabOptions options, Reader& reader, const ExpertTable& table) {
  options.on_piece = [&reader](std::byte* data, i64 bytes) { reader.add_memory(data, bytes); };
  options.on_piece_gone = [&reader](std::byte* data, i64 bytes) { reader.remove_memory(data, bytes); };
  options.minimum_slots = std::min(table.top_k(), table.experts_per_layer());
  return options;
}

}  // namespace

// Pins (see residency_policy.h): one while a read is in flight, one while the lease wants or uses the expert.
struct Scheduler::Impl {
  enum class State : u8 { absent, in_flight, resident };
  struct Entry {
    SlotId slot;
    State state = State::absent;
    i32 want = -1;  // index into the lease's wants, while it waits for this read
    bool predicted = false;  // brought by a hint and not wanted yet
    bool retry = false;      // its read began as a prediction: a failure of that is no failure of the lease
  };
  enum class Phase : u8 { queued, loading, ready, handed_out, released };
  struct Want {
    ExpertId expert;
    Phase phase = Phase::queued;
  };

  Impl(const ExpertTable& t, const Plan& p, std::unique_ptr<ResidencyPolicy> residency, Reader& r,
       const Clock& c, SlabOptions slab_options);
  ~Impl();

  // --- slots
  void collect_memory();
  SlotId find_slot(i64 moe_layer);
  void start_read(ExpertKey key, SlotId slot, ReadPriority priority);
  void fetch(ExpertKey key, SlotId slot, ReadPriority priority);
  void evict(ExpertKey key);
  void land(const FetchDone& done);
  void poll();
  void block();

  // --- the lease
  void begin_lease(i64 moe_layer, std::span<const ExpertRequest> requests);
  void start_queued();
  void hand_out(std::vector<ReadyExpert>& ready);
  Status wait(std::vector<ReadyExpert>& ready);
  void release(const ReadyExpert& expert);
  void end_lease();

  // --- predictions
  void hint(i64 moe_layer, std::span<const ExpertExpectation> expected);
  bool predict(ExpertKey key, f32 probability);
  void use_predicted(Entry& e, ExpertKey key);
  void drop_predicted(i64 moe_layer);
  bool give_up_predicted();
  void cancel_predicted(ExpertKey key);
  void end_pass(i64 tokens, i64 ns, bool decode);

  // --- preload
  std::vector<i64> layers_in_file_order() const;
  i64 preload_bytes() const;
  SlotId wait_for_free_slot(i64 slot_class);

  size_t index_of(ExpertKey key) const {
    return static_cast<size_t>(key.moe_layer * table.experts_per_layer() + key.expert.value);
  }
  Entry& entry(ExpertKey key) { return entries[index_of(key)]; }
  i64 class_of(i64 moe_layer) const { return plan.class_of_moe_layer[static_cast<size_t>(moe_layer)]; }
  LayerId layer_of(i64 moe_layer) const { return table.layers()[static_cast<size_t>(moe_layer)].layer; }

  const ExpertTable& table;
  const Plan plan;
  std::unique_ptr<ResidencyPolicy> policy;
  Reader& reader;
  const Clock& clock;
  Slab slab;
  Streamer streamer;
  std::vector<Entry> entries;  // [moe layers * experts]
  std::vector<u32> last_use;   // [moe layers * experts]: pass of the last use; 0: none
  u32 pass = 1;
  SchedulerStats stats;
  Expectations expectations;
  Governor governor{PrefetchMode::off};
  std::vector<ExpertKey> predicted;  // reads under way that nobody waits for, oldest first
  SchedulerStats at_last_pass;       // what the governor has seen
  bool told = false;                 // that prefetch does not pay

  bool leased = false;
  i64 lease_layer = 0;      // moe index
  std::vector<Want> wants;  // in the order of the requests
  size_t next_queued = 0;   // wants before this one are not queued
  std::vector<i32> landed;  // wants that are ready and not handed out, in the order they became so
  i64 handed_out = 0;       // and not released
  i64 pending = 0;          // not yet handed out
  Status lease_failure;
  Status other_failure;  // of reads that no lease waits for
};

Scheduler::Impl::Impl(const ExpertTable& t, const Plan& p, std::unique_ptr<ResidencyPolicy> residency,
                      Reader& r, const Clock& c, SlabOptions slab_options)
    : table(t),
      plan(p),
      policy(std::move(residency)),
      reader(r),
      clock(c),
      slab(plan, complete(std::move(slab_options), r, t)),
      streamer(table, plan, reader, clock, slab.planned_slots()),
      entries(static_cast<size_t>(t.moe_layers() * t.experts_per_layer())),
      last_use(entries.size()),
      expectations(t.moe_layers(), t.experts_per_layer()) {
  CHECK(static_cast<i64>(plan.class_of_moe_layer.size()) == table.moe_layers());
  wants.reserve(static_cast<size_t>(table.experts_per_layer()));
  landed.reserve(static_cast<size_t>(table.experts_per_layer()));
  predicted.reserve(static_cast<size_t>(slab.planned_slots()));
  collect_memory();
}

Scheduler::Impl::~Impl() {
  CHECK(!leased);
  while (streamer.under_way() > 0) {
    poll();
    if (streamer.under_way() > 0) streamer.wait(kWaitSliceNs);
  }
}

void Scheduler::Impl::collect_memory() {
  if (!slab.collect()) return;
  for (size_t c = 0; c < plan.classes.size(); c++)
    policy->on_capacity(static_cast<i64>(c), slab.usable_slots(static_cast<i64>(c)));
}

SlotId Scheduler::Impl::find_slot(i64 moe_layer) {
  SlotId slot = slab.take(class_of(moe_layer));
  if (slot.valid()) return slot;
  std::optional<ExpertKey> victim = policy->choose_victim(moe_layer);
  if (!victim) return {};
  CHECK(entry(*victim).state == State::resident);
  stats.evictions++;
  evict(*victim);
  return slab.take(class_of(moe_layer));
}

void Scheduler::Impl::start_read(ExpertKey key, SlotId slot, ReadPriority priority) {
  Entry& e = entry(key);
  e.slot = slot;
  e.state = State::in_flight;
  policy->on_admit(key);
  fetch(key, slot, priority);
}

void Scheduler::Impl::fetch(ExpertKey key, SlotId slot, ReadPriority priority) {
  streamer.start({.layer = layer_of(key.moe_layer),
                  .expert = key.expert,
                  .slot = slot,
                  .to = slab.data(slot),
                  .priority = priority});
}

void Scheduler::Impl::evict(ExpertKey key) {
  Entry& e = entry(key);
  policy->on_evict(key);
  slab.give_back(e.slot);
  e = {};
}

void Scheduler::Impl::land(const FetchDone& done) {
  ExpertKey key{table.moe_index(done.layer), done.expert};
  Entry& e = entry(key);
  if (e.predicted) std::erase(predicted, key);
  if (std::exchange(e.retry, false) && !done.status.ok() && e.want >= 0) {
    fetch(key, e.slot, ReadPriority::demand);
    return;
  }
  i32 want = std::exchange(e.want, -1);
  policy->on_unpin(key);
  if (done.status.ok()) {
    e.state = State::resident;
    if (e.predicted) stats.predicted_bytes += table.expert_bytes(done.layer);
    if (want < 0) return;
    wants[static_cast<size_t>(want)].phase = Phase::ready;
    landed.push_back(want);
    return;
  }
  if (want >= 0) {
    policy->on_unpin(key);
    wants[static_cast<size_t>(want)].phase = Phase::released;
    if (lease_failure.ok()) lease_failure = done.status;
  } else if (other_failure.ok() && !e.predicted) {
    other_failure = done.status;
  }
  evict(key);
}

// Takes in what has happened since the last call: memory, landed reads.
void Scheduler::Impl::poll() {
  collect_memory();
  streamer.pump();
  FetchDone done;
  while (streamer.next(done)) land(done);
}

void Scheduler::Impl::block() {
  i64 begin = clock.now_ns();
  if (streamer.under_way() > 0)
    streamer.wait(kWaitSliceNs);
  else if (slab.growing())
    slab.wait_growth(kWaitSliceNs);
  else
    CHECK(!"a lease waits for a slot although nothing is pinned");  // the policy broke its promise
  stats.wait_ns += clock.now_ns() - begin;
}

void Scheduler::Impl::begin_lease(i64 moe_layer, std::span<const ExpertRequest> requests) {
  CHECK(!leased && moe_layer >= 0);
  leased = true;
  lease_layer = moe_layer;
  wants.clear();
  landed.clear();
  next_queued = 0;
  handed_out = 0;
  pending = static_cast<i64>(requests.size());
  lease_failure = {};
  poll();
  i64 tokens = 0;
  for (const ExpertRequest& request : requests) tokens = std::max<i64>(tokens, request.tokens);
  policy->on_layer(moe_layer, tokens);
  expectations.end(moe_layer);
  // Hits first: what is pinned cannot become the victim of a miss of the same lease.
  for (size_t i = 0; i < requests.size(); i++) {
    ExpertKey key{moe_layer, requests[i].expert};
    CHECK(key.expert.value >= 0 && key.expert.value < table.experts_per_layer());
    Entry& e = entry(key);
    policy->on_use(key, requests[i].tokens, requests[i].gate_weight);
    wants.push_back({key.expert});
    stats.requests++;
    (e.state == State::resident ? stats.hits : stats.misses)++;
    if (e.state == State::resident) stats.hit_bytes += table.expert_bytes(layer_of(moe_layer));
    last_use[index_of(key)] = pass;
    if (e.state == State::absent) continue;
    if (e.predicted) use_predicted(e, key);
    policy->on_pin(key);
    wants[i].phase = e.state == State::resident ? Phase::ready : Phase::loading;
    if (e.state == State::resident)
      landed.push_back(static_cast<i32>(i));
    else
      e.want = static_cast<i32>(i);
  }
  drop_predicted(moe_layer);
  start_queued();
}

// Starts reads for queued wants, in order, as far as there are slots.
void Scheduler::Impl::start_queued() {
  for (; next_queued < wants.size(); next_queued++) {
    Want& want = wants[next_queued];
    if (want.phase != Phase::queued) continue;
    ExpertKey key{lease_layer, want.expert};
    SlotId slot = find_slot(lease_layer);
    while (!slot.valid() && give_up_predicted()) slot = find_slot(lease_layer);
    if (!slot.valid()) break;
    start_read(key, slot, ReadPriority::demand);
    policy->on_pin(key);
    entry(key).want = static_cast<i32>(next_queued);
    want.phase = Phase::loading;
  }
  streamer.pump();
}

void Scheduler::Impl::hand_out(std::vector<ReadyExpert>& ready) {
  for (i32 i : landed) {
    Want& want = wants[static_cast<size_t>(i)];
    const std::byte* slot = slab.data(entry({lease_layer, want.expert}).slot);
    ExpertReads reads = expert_reads(table, layer_of(lease_layer), want.expert, plan.alignment);
    ready.push_back({i, slot + reads.at_slot(ExpertMatrix::gate), slot + reads.at_slot(ExpertMatrix::up),
                     slot + reads.at_slot(ExpertMatrix::down)});
    want.phase = Phase::handed_out;
  }
  handed_out += static_cast<i64>(landed.size());
  pending -= static_cast<i64>(landed.size());
  landed.clear();
}

Status Scheduler::Impl::wait(std::vector<ReadyExpert>& ready) {
  for (;;) {
    poll();
    if (!lease_failure.ok()) return lease_failure;
    start_queued();
    if (!landed.empty()) {
      hand_out(ready);
      return {};
    }
    if (pending == 0 || handed_out > 0) return {};
    block();
  }
}

void Scheduler::Impl::release(const ReadyExpert& expert) {
  CHECK(expert.request >= 0 && expert.request < static_cast<i64>(wants.size()));
  Want& want = wants[static_cast<size_t>(expert.request)];
  CHECK(want.phase == Phase::handed_out);
  want.phase = Phase::released;
  policy->on_unpin({lease_layer, want.expert});
  handed_out--;
  if (lease_failure.ok()) start_queued();
}

void Scheduler::Impl::end_lease() {
  for (const Want& want : wants) {
    if (want.phase == Phase::queued || want.phase == Phase::released) continue;
    ExpertKey key{lease_layer, want.expert};
    policy->on_unpin(key);
    if (want.phase != Phase::loading) continue;
    Entry& e = entry(key);
    e.want = -1;
    if (!streamer.cancel(e.slot)) continue;
    policy->on_unpin(key);
    evict(key);
  }
  wants.clear();
  landed.clear();
  leased = false;
}

void Scheduler::Impl::hint(i64 moe_layer, std::span<const ExpertExpectation> expected) {
  expectations.replace(moe_layer, expected, *policy);
  if (!governor.prefetching()) return;
  // Wants without a slot come first; what is free or given up goes to them.
  bool slots_are_short = leased && std::any_of(wants.begin() + static_cast<std::ptrdiff_t>(next_queued), wants.end(),
                                               [](const Want& w) { return w.phase == Phase::queued; });
  if (slots_are_short) return;
  i64 started = 0;
  for (const ExpertExpectation& e : expected) {
    if (started == kPredictedPerHint) break;
    ExpertKey key{moe_layer, e.expert};
    if (e.probability < governor.threshold() || entry(key).state != State::absent) continue;
    if (!predict(key, e.probability)) break;
    started++;
  }
  if (started > 0) streamer.pump();
}

// Starts the read of an expert that nobody waits for, if it is worth more than what it replaces.
bool Scheduler::Impl::predict(ExpertKey key, f32 probability) {
  SlotId slot = slab.take(class_of(key.moe_layer));
  if (!slot.valid()) {
    std::optional<ExpertKey> victim = policy->choose_victim_for(key, probability);
    if (!victim || expectations.probability(*victim) >= probability) return false;
    CHECK(entry(*victim).state == State::resident);
    stats.evictions++;
    evict(*victim);
    slot = slab.take(class_of(key.moe_layer));
    CHECK(slot.valid());
  }
  start_read(key, slot, ReadPriority::predicted);
  entry(key).predicted = true;
  predicted.push_back(key);
  return true;
}

// The lease wants what a hint has brought, or is bringing.
void Scheduler::Impl::use_predicted(Entry& e, ExpertKey key) {
  e.predicted = false;
  i64 bytes = table.expert_bytes(layer_of(key.moe_layer));
  if (e.state == State::resident) {
    stats.useful_bytes += bytes;
    return;
  }
  std::erase(predicted, key);
  e.retry = true;
  stats.upgrades++;
  if (!streamer.upgrade(e.slot)) return;  // not begun: an ordinary miss from here on
  stats.predicted_bytes += bytes;
  stats.useful_bytes += bytes;
}

// The layer has come, and does not want these.
void Scheduler::Impl::drop_predicted(i64 moe_layer) {
  for (size_t i = predicted.size(); i > 0; i--)
    if (predicted[i - 1].moe_layer == moe_layer) cancel_predicted(predicted[i - 1]);
}

// Frees the slot of the latest prediction whose read has not begun. False when there is none.
bool Scheduler::Impl::give_up_predicted() {
  for (size_t i = predicted.size(); i > 0; i--) {
    size_t before = predicted.size();
    cancel_predicted(predicted[i - 1]);
    if (predicted.size() < before) return true;
  }
  return false;
}

void Scheduler::Impl::cancel_predicted(ExpertKey key) {
  if (!streamer.cancel(entry(key).slot)) return;
  std::erase(predicted, key);
  policy->on_unpin(key);
  evict(key);
}

void Scheduler::Impl::end_pass(i64 tokens, i64 ns, bool decode) {
  pass++;
  stats.disk_busy_ns = streamer.busy_ns();
  SchedulerStats before = std::exchange(at_last_pass, stats);
  if (!decode) return;
  Governor::Verdict verdict = governor.observe({.tokens = tokens,
                                                .ns = ns,
                                                .disk_busy_ns = stats.disk_busy_ns - before.disk_busy_ns,
                                                .predicted_bytes = stats.predicted_bytes - before.predicted_bytes,
                                                .useful_bytes = stats.useful_bytes - before.useful_bytes});
  if (verdict != Governor::Verdict::off || std::exchange(told, true)) return;
  log_info("prefetch is off for now: tokens/s with it {:+.1f} %", governor.gain() * 100);
}

std::vector<i64> Scheduler::Impl::layers_in_file_order() const {
  std::vector<i64> order(static_cast<size_t>(table.moe_layers()));
  for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<i64>(i);
  auto place = [&](i64 moe_layer) {
    const Extent& gate = table.layers()[static_cast<size_t>(moe_layer)].base[0];
    return std::pair(gate.file, gate.offset);
  };
  std::stable_sort(order.begin(), order.end(), [&](i64 a, i64 b) { return place(a) < place(b); });
  return order;
}

i64 Scheduler::Impl::preload_bytes() const {
  i64 bytes = 0;
  for (const SlotClass& c : plan.classes) {
    i64 experts = std::min(c.slots, static_cast<i64>(c.moe_layers.size()) * table.experts_per_layer());
    if (experts > 0) bytes += experts * table.expert_bytes(layer_of(c.moe_layers[0]));
  }
  return bytes;
}

// Invalid when the class has no more to come.
SlotId Scheduler::Impl::wait_for_free_slot(i64 slot_class) {
  for (;;) {
    bool growing = slab.growing();
    collect_memory();
    SlotId slot = slab.take(slot_class);
    if (slot.valid() || !growing) return slot;
    poll();
    slab.wait_growth(kWaitSliceNs);
  }
}

Scheduler::Scheduler(const ExpertTable& table, const Plan& plan, std::unique_ptr<ResidencyPolicy> policy,
                     Reader& reader, const Clock& clock)
    : Scheduler(table, plan, std::move(policy), reader, clock, SlabOptions{}) {}

Scheduler::Scheduler(const ExpertTable& table, const Plan& plan, std::unique_ptr<ResidencyPolicy> policy,
                     Reader& reader, const Clock& clock, SlabOptions slab_options)
    : impl_(std::make_unique<Impl>(table, plan, std::move(policy), reader, clock, std::move(slab_options))) {}

Scheduler::~Scheduler() = default;

Scheduler::Lease Scheduler::acquire(LayerId layer, std::span<const ExpertRequest> requests) {
  impl_->begin_lease(impl_->table.moe_index(layer), requests);
  return Lease(this);
}

Status Scheduler::preload(bool (*progress)(i64 done, i64 total, void* context), void* context) {
  Impl& s = *impl_;
  CHECK(!s.leased);
  s.other_failure = {};
  i64 total = s.preload_bytes();
  i64 started = 0;
  auto settle = [&](i64 most_under_way) {
    s.poll();
    // After a failure all that is under way is waited for, so that every slot is accounted for.
    while (s.streamer.under_way() > (s.other_failure.ok() ? most_under_way : 0)) {
      s.streamer.wait(kWaitSliceNs);
      s.poll();
    }
    return s.other_failure.ok() && (progress == nullptr || progress(started, total, context));
  };
  for (i64 moe_layer : s.layers_in_file_order()) {
    for (i64 e = 0; e < s.table.experts_per_layer(); e++) {
      ExpertKey key{moe_layer, ExpertId(e)};
      if (s.entry(key).state != Impl::State::absent) continue;
      SlotId slot = s.wait_for_free_slot(s.class_of(moe_layer));
      if (!slot.valid()) break;
      s.start_read(key, slot, ReadPriority::background);
      if (!settle(kPreloadTransfers)) return s.other_failure;
      started += s.table.expert_bytes(s.layer_of(moe_layer));
    }
  }
  settle(0);
  return s.other_failure;
}

void Scheduler::hint(LayerId layer, std::span<const ExpertExpectation> expected) {
  i64 moe_layer = impl_->table.moe_index(layer);
  CHECK(moe_layer >= 0);
  impl_->hint(moe_layer, expected);
}

void Scheduler::set_prefetch(PrefetchMode mode) { impl_->governor = Governor(mode); }
void Scheduler::end_pass(i64 tokens, i64 ns, bool decode) { impl_->end_pass(tokens, ns, decode); }
const Governor& Scheduler::governor() const { return impl_->governor; }
void Scheduler::tend() { impl_->poll(); }

const ExpertTable& Scheduler::table() const { return impl_->table; }

const SchedulerStats& Scheduler::stats() const {
  impl_->stats.bytes_read = impl_->streamer.bytes_read();
  impl_->stats.disk_busy_ns = impl_->streamer.busy_ns();
  return impl_->stats;
}

ResidencyView Scheduler::view() const {
  const Impl& s = *impl_;
  ResidencyView view;
  view.experts = s.table.experts_per_layer();
  for (const auto& layer : s.table.layers()) view.layers.push_back(layer.layer);
  view.tiers.reserve(s.entries.size());
  view.passes_since_use.reserve(s.entries.size());
  for (const Impl::Entry& e : s.entries)
    view.tiers.push_back(e.state == Impl::State::resident    ? ExpertTier::ram
                         : e.state == Impl::State::in_flight ? ExpertTier::arriving
                                                             : ExpertTier::disk);
  u32 last = s.pass - 1;  // between passes; within one its own uses are newer
  for (u32 used : s.last_use)
    view.passes_since_use.push_back(used == 0 ? ResidencyView::kNeverUsed : used < last ? last - used : 0);
  return view;
}

Scheduler::Lease::Lease(Scheduler* owner) : owner_(owner) {}
Scheduler::Lease::Lease(Lease&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)) {}
Scheduler::Lease::~Lease() {
  if (owner_ != nullptr) owner_->impl_->end_lease();
}

Status Scheduler::Lease::wait(std::vector<ReadyExpert>& ready) { return owner_->impl_->wait(ready); }
void Scheduler::Lease::release(const ReadyExpert& expert) { owner_->impl_->release(expert); }
i64 Scheduler::Lease::pending() const { return owner_->impl_->pending; }

}  // namespace stoker
