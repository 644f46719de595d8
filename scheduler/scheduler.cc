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
constexpr i64 kMostExchanges = 256;    // under way at a time, of a class of slots
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
  enum class State : u8 { absent, in_flight, resident, on_device };
  struct Entry {
    SlotId slot;
    VramSlot vram;  // on_device
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
       const Clock& c, SlabOptions slab_options, Copier* copier);
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

  // --- devices: nothing of this happens without them
  void keep_exchange_slots(size_t slot_class);
  DeviceTier::RamPlace ram_place(ExpertKey key, SlotId slot) const;
  void poll_devices();
  void settle_exchanges(bool border);
  void end(const Exchange& exchange);
  bool give_up_exchange();
  void end_epoch(i64 tokens, bool decode);
  void begin_moves(std::span<const ExpertKey> candidates, std::span<const i64> most_moves);
  void lose_device(i64 device);
  void fill_devices(i64 moe_layer);

  // --- preload
  std::vector<i64> layers_in_file_order() const;
  i64 preload_bytes() const;
  SlotId wait_for_free_slot(i64 slot_class);
  i64 device_room(size_t slot_class) const;

  size_t index_of(ExpertKey key) const {
    return static_cast<size_t>(key.moe_layer * table.experts_per_layer() + key.expert.value);
  }
  Entry& entry(ExpertKey key) { return entries[index_of(key)]; }
  static ExpertTier tier_of(const Entry& e) {
    switch (e.state) {
      case State::absent: return ExpertTier::disk;
      case State::in_flight: return ExpertTier::arriving;
      case State::resident: return ExpertTier::ram;
      case State::on_device: return ExpertTier::vram;
    }
    return ExpertTier::disk;
  }
  i64 class_of(i64 moe_layer) const { return plan.class_of_moe_layer[static_cast<size_t>(moe_layer)]; }
  ExpertKey key_of(size_t entry) const {
    i64 experts = table.experts_per_layer(), node = static_cast<i64>(entry);
    return {node / experts, ExpertId(node % experts)};
  }
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

  std::optional<DeviceTier> devices;
  std::vector<std::vector<SlotId>> exchange_slots;  // [classes] free ones, that the cache does not know of
  std::vector<i64> kept_slots;                      // [classes] how many there are, free or not
  std::vector<ExpertKey> candidates;
  std::vector<i64> ram_room, most_moves;            // [classes]
  i64 epoch = 0;

  bool leased = false;
  i64 lease_layer = 0;      // moe index
  std::vector<Want> wants;  // in the order of the requests
  std::vector<DeviceExpert> on_devices;  // of the lease
  size_t next_queued = 0;   // wants before this one are not queued
  std::vector<i32> landed;  // wants that are ready and not handed out, in the order they became so
  i64 handed_out = 0;       // and not released
  i64 pending = 0;          // not yet handed out
  Status lease_failure;
  Status other_failure;  // of reads that no lease waits for
};

Scheduler::Impl::Impl(const ExpertTable& t, const Plan& p, std::unique_ptr<ResidencyPolicy> residency,
                      Reader& r, const Clock& c, SlabOptions slab_options, Copier* copier)
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
  exchange_slots.resize(plan.classes.size());
  kept_slots.resize(plan.classes.size());
  if (copier != nullptr && !plan.devices.empty()) {
    devices.emplace(table, plan, *copier);
    on_devices.reserve(static_cast<size_t>(table.experts_per_layer()));
    candidates.reserve(entries.size());
    ram_room.resize(plan.classes.size());
    most_moves.resize(plan.classes.size());
  }
  collect_memory();
}

Scheduler::Impl::~Impl() {
  CHECK(!leased);
  while (streamer.under_way() > 0) {
    poll();
    if (streamer.under_way() > 0) streamer.wait(kWaitSliceNs);
  }
  while (devices && devices->under_way() > 0) {
    devices->poll();
    settle_exchanges(true);
    if (devices->under_way() > 0) devices->wait(kWaitSliceNs);
  }
}

void Scheduler::Impl::collect_memory() {
  if (!slab.collect()) return;
  for (size_t c = 0; c < plan.classes.size(); c++) {
    if (devices) keep_exchange_slots(c);
    policy->on_capacity(static_cast<i64>(c), slab.usable_slots(static_cast<i64>(c)) - kept_slots[c]);
  }
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
  if (devices) poll_devices();
}

void Scheduler::Impl::block() {
  i64 begin = clock.now_ns();
  if (streamer.under_way() > 0)
    streamer.wait(kWaitSliceNs);
  else if (slab.growing())
    slab.wait_growth(kWaitSliceNs);
  else if (devices && devices->under_way() > 0)
    devices->wait(kWaitSliceNs);
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
  on_devices.clear();
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
    last_use[index_of(key)] = pass;
    if (e.state == State::on_device) {
      stats.device_hits++;
      wants[i].phase = Phase::released;
      pending--;
      on_devices.push_back(devices->expert_at(e.vram, moe_layer));
      on_devices.back().request = static_cast<i64>(i);
      continue;
    }
    if (devices) devices->placement().on_use_in_ram(key);
    (e.state == State::resident ? stats.hits : stats.misses)++;
    if (e.state == State::resident) stats.hit_bytes += table.expert_bytes(layer_of(moe_layer));
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
    while (!slot.valid() && give_up_exchange()) slot = find_slot(lease_layer);
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
    stats.predicted_hits++;
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
  if (devices) end_epoch(tokens, decode);
  if (!decode) return;
  Governor::Verdict verdict = governor.observe({.tokens = tokens,
                                                .ns = ns,
                                                .disk_busy_ns = stats.disk_busy_ns - before.disk_busy_ns,
                                                .predicted_bytes = stats.predicted_bytes - before.predicted_bytes,
                                                .useful_bytes = stats.useful_bytes - before.useful_bytes});
  if (verdict != Governor::Verdict::off || std::exchange(told, true)) return;
  log_info("prefetch is off for now: tokens/s with it {:+.1f} %", governor.gain() * 100);
}

// What the least that works leaves; the plan says how many at most.
void Scheduler::Impl::keep_exchange_slots(size_t c) {
  i64 wanted = std::clamp<i64>(slab.usable_slots(static_cast<i64>(c)) - std::min(table.top_k(), table.experts_per_layer()),
                               0, plan.classes[c].exchange_slots);
  while (kept_slots[c] < wanted) {
    SlotId slot = slab.take(static_cast<i64>(c));
    if (!slot.valid()) return;
    exchange_slots[c].push_back(slot);
    kept_slots[c]++;
  }
}

DeviceTier::RamPlace Scheduler::Impl::ram_place(ExpertKey key, SlotId slot) const {
  ExpertReads reads = expert_reads(table, layer_of(key.moe_layer), key.expert, plan.alignment);
  DeviceTier::RamPlace place{.slot = slot, .matrices = {}};
  for (size_t m = 0; m < place.matrices.size(); m++) place.matrices[m] = slab.data(slot) + reads.matrix_at_slot[m];
  return place;
}

void Scheduler::Impl::poll_devices() {
  devices->poll();
  for (i64 lost = devices->next_lost(); lost >= 0; lost = devices->next_lost()) lose_device(lost);
  settle_exchanges(false);
}

void Scheduler::Impl::settle_exchanges(bool border) {
  Exchange ended;
  while (devices->next(border, ended)) end(ended);
}

// Both experts change places, or none.
void Scheduler::Impl::end(const Exchange& exchange) {
  const Placement::Move& move = exchange.move;
  size_t c = static_cast<size_t>(exchange.to.slot_class);
  policy->on_unpin(move.up);
  devices->placement().on_end(move, exchange.good());
  if (!exchange.good()) {
    stats.failed_exchanges++;
    devices->vram().give_back(exchange.to);
    if (move.down) exchange_slots[c].push_back(exchange.ram_slot);
    return;
  }
  policy->on_evict(move.up);
  SlotId left = std::exchange(entry(move.up), {.slot = {}, .vram = exchange.to, .state = State::on_device}).slot;
  i64 bytes = table.expert_bytes(layer_of(move.up.moe_layer));
  stats.promotions++;
  stats.uploaded_bytes += bytes;
  if (!move.down) {
    slab.give_back(left);
    return;
  }
  exchange_slots[c].push_back(left);
  stats.downloaded_bytes += bytes;
  Entry& down = entry(*move.down);
  devices->vram().retire(down.vram, epoch);
  down = {.slot = exchange.ram_slot, .vram = {}, .state = State::resident};
  policy->on_admit(*move.down);
  policy->on_unpin(*move.down);
}

// True when that has freed an expert in RAM: at once, when its copies have ended; else it will.
bool Scheduler::Impl::give_up_exchange() {
  if (!devices || !devices->give_up()) return false;
  i64 before = devices->under_way();
  settle_exchanges(false);
  return devices->under_way() < before;
}

void Scheduler::Impl::end_epoch(i64 tokens, bool decode) {
  CHECK(!leased);
  poll();
  settle_exchanges(true);
  epoch++;
  Placement& placement = devices->placement();
  placement.on_pass(tokens, decode);
  candidates.clear();
  auto offer = [&](ExpertKey key) {
    const Entry& e = entry(key);
    if (e.state == State::resident && !e.predicted) candidates.push_back(key);
  };
  if (placement.refreshing())
    for (size_t i = 0; i < entries.size(); i++) offer(key_of(i));
  else
    for (ExpertKey key : placement.used_in_ram()) offer(key);
  for (size_t c = 0; c < most_moves.size(); c++) {
    i64 most = std::min(kMostExchanges, slab.usable_slots(static_cast<i64>(c)) / 4);
    most_moves[c] = std::max<i64>(0, most - devices->under_way(static_cast<i64>(c)));
  }
  begin_moves(candidates, most_moves);
}

void Scheduler::Impl::begin_moves(std::span<const ExpertKey> offered, std::span<const i64> most) {
  for (size_t c = 0; c < ram_room.size(); c++) ram_room[c] = static_cast<i64>(exchange_slots[c].size());
  for (const Placement::Move& move : devices->choose(*policy, offered, ram_room, most)) {
    policy->on_pin(move.up);
    DeviceTier::RamPlace down;
    VramSlot from;
    if (move.down) {
      std::vector<SlotId>& free = exchange_slots[static_cast<size_t>(class_of(move.up.moe_layer))];
      down = ram_place(*move.down, free.back());
      free.pop_back();
      from = entry(*move.down).vram;
    }
    devices->start(move, ram_place(move.up, entry(move.up).slot), down, from);
  }
}

void Scheduler::Impl::lose_device(i64 device) {
  if (!devices || devices->vram().lost(device)) return;
  log_warning("device {} is lost: its experts are read from disk when they are wanted", device);
  devices->lose(device);
  for (Entry& e : entries)
    if (e.state == State::on_device && e.vram.device == device) e = {};
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
  for (size_t i = 0; i < plan.classes.size(); i++) {
    const SlotClass& c = plan.classes[i];
    i64 slots = c.slots;
    if (devices) slots += device_room(i) - c.exchange_slots;
    i64 experts = std::min(slots, static_cast<i64>(c.moe_layers.size()) * table.experts_per_layer());
    if (experts > 0) bytes += experts * table.expert_bytes(layer_of(c.moe_layers[0]));
  }
  return bytes;
}

// Invalid when the class has no more to come.
SlotId Scheduler::Impl::wait_for_free_slot(i64 slot_class) {
  for (;;) {
    bool growing = slab.growing();
    collect_memory();
    if (devices) settle_exchanges(true);
    SlotId slot = slab.take(slot_class);
    bool leaving = devices && devices->under_way() > 0;
    if (slot.valid() || (!growing && !leaving)) return slot;
    poll();
    if (growing)
      slab.wait_growth(kWaitSliceNs);
    else
      devices->wait(kWaitSliceNs);
  }
}

// Experts that all devices together have room for.
i64 Scheduler::Impl::device_room(size_t slot_class) const {
  i64 room = 0;
  for (const DevicePlan& device : plan.devices) room += device.slots[slot_class] - device.exchange_slots[slot_class];
  return room;
}

// Of what a preload has read of this layer, its share of what the devices hold goes there, so that RAM has room for more.
void Scheduler::Impl::fill_devices(i64 moe_layer) {
  size_t c = static_cast<size_t>(class_of(moe_layer));
  const std::vector<i64>& layers = plan.classes[c].moe_layers;
  i64 before = std::find(layers.begin(), layers.end(), moe_layer) - layers.begin();
  i64 all = static_cast<i64>(layers.size());
  i64 share = device_room(c) * (before + 1) / all - device_room(c) * before / all;
  candidates.clear();
  for (i64 e = 0; e < table.experts_per_layer(); e++) {
    ExpertKey key{moe_layer, ExpertId(e)};
    State state = entry(key).state;
    share -= state == State::on_device || devices->placement().moving(key);
    if (state == State::resident) candidates.push_back(key);
  }
  std::fill(most_moves.begin(), most_moves.end(), 0);
  most_moves[c] = std::max<i64>(0, share);
  begin_moves(candidates, most_moves);
}

Scheduler::Scheduler(const ExpertTable& table, const Plan& plan, std::unique_ptr<ResidencyPolicy> policy,
                     Reader& reader, const Clock& clock)
    : Scheduler(table, plan, std::move(policy), reader, clock, SlabOptions{}) {}

Scheduler::Scheduler(const ExpertTable& table, const Plan& plan, std::unique_ptr<ResidencyPolicy> policy,
                     Reader& reader, const Clock& clock, SlabOptions slab_options, Copier* copier)
    : impl_(std::make_unique<Impl>(table, plan, std::move(policy), reader, clock, std::move(slab_options), copier)) {}

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
      if (!slot.valid() && s.devices) {
        if (!settle(0)) return s.other_failure;
        s.fill_devices(moe_layer);
        slot = s.wait_for_free_slot(s.class_of(moe_layer));
      }
      if (!slot.valid()) break;
      s.start_read(key, slot, ReadPriority::background);
      if (!settle(kPreloadTransfers)) return s.other_failure;
      started += s.table.expert_bytes(s.layer_of(moe_layer));
    }
    if (!s.devices) continue;
    if (!settle(0)) return s.other_failure;
    s.fill_devices(moe_layer);
  }
  settle(0);
  while (s.devices && s.devices->under_way() > 0) {
    s.poll();
    s.settle_exchanges(true);
    if (s.devices->under_way() > 0) s.devices->wait(kWaitSliceNs);
  }
  return s.other_failure;
}

void Scheduler::hint(LayerId layer, std::span<const ExpertExpectation> expected) {
  i64 moe_layer = impl_->table.moe_index(layer);
  CHECK(moe_layer >= 0);
  impl_->hint(moe_layer, expected);
}

void Scheduler::set_prefetch(PrefetchMode mode) { impl_->governor = Governor(mode); }
void Scheduler::end_pass(i64 tokens, i64 ns, bool decode) { impl_->end_pass(tokens, ns, decode); }
i64 Scheduler::epoch() const { return impl_->epoch; }
void Scheduler::finish_epoch(i64 device, i64 epoch) {
  CHECK(epoch <= impl_->epoch);
  if (impl_->devices) impl_->devices->vram().finish(device, epoch);
}
void Scheduler::lose_device(i64 device) { impl_->lose_device(device); }
i64 Scheduler::experts_on_device(i64 device) const {
  return impl_->devices ? impl_->devices->placement().experts(device) : 0;
}
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
  for (const Impl::Entry& e : s.entries) view.tiers.push_back(Impl::tier_of(e));
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

std::span<const DeviceExpert> Scheduler::Lease::on_devices() const { return owner_->impl_->on_devices; }
Status Scheduler::Lease::wait(std::vector<ReadyExpert>& ready) { return owner_->impl_->wait(ready); }
void Scheduler::Lease::release(const ReadyExpert& expert) { owner_->impl_->release(expert); }
i64 Scheduler::Lease::pending() const { return owner_->impl_->pending; }

}  // namespace stoker
