#include "scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "scheduler/scheduler_impl.h"

namespace stoker {

namespace {

SlabOptions complete(SlabOptions options, Reader& reader, Copier* copier, const ExpertTable& table) {
  options.on_piece = [&reader, copier](std::byte* data, i64 bytes) {
    reader.add_memory(data, bytes);
    if (copier != nullptr) copier->add_memory(data, bytes);
  };
  options.on_piece_gone = [&reader, copier](std::byte* data, i64 bytes) {
    if (copier != nullptr) copier->remove_memory(data, bytes);
    reader.remove_memory(data, bytes);
  };
  options.minimum_slots = std::min(table.top_k(), table.experts_per_layer());
  return options;
}

}  // namespace

Scheduler::Impl::Impl(const ExpertTable& t, const Plan& p, std::unique_ptr<ResidencyPolicy> residency,
                      Reader& r, const Clock& c, SlabOptions slab_options, Copier* copier)
    : table(t),
      plan(p),
      policy(std::move(residency)),
      reader(r),
      clock(c),
      slab(plan, complete(std::move(slab_options), r, copier, t)),
      streamer(table, plan, reader, clock, slab.planned_slots()),
      entries(static_cast<size_t>(t.moe_layers() * t.experts_per_layer())),
      last_use(entries.size()),
      expectations(t.moe_layers(), t.experts_per_layer()),
      piece_wants(t.moe_layers(), t.experts_per_layer(), t.top_k()) {
  CHECK(static_cast<i64>(plan.class_of_moe_layer.size()) == table.moe_layers());
  wants.reserve(static_cast<size_t>(table.experts_per_layer()));
  landed.reserve(static_cast<size_t>(table.experts_per_layer()));
  fills.reserve(static_cast<size_t>(slab.planned_slots()));
  piece.wants.reserve(static_cast<size_t>(table.experts_per_layer()));
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
  drain();
  check_slots();
}

ExpertTier Scheduler::Impl::tier_of(const Entry& e) {
  switch (e.state) {
    case State::absent: return ExpertTier::disk;
    case State::in_flight: return ExpertTier::arriving;
    case State::resident: return ExpertTier::ram;
    case State::on_device: return ExpertTier::vram;
  }
  return ExpertTier::disk;
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

bool Scheduler::has_slot_for_all() const { return impl_->plan.all_resident; }

void Scheduler::hint(LayerId layer, std::span<const ExpertExpectation> expected) {
  i64 moe_layer = impl_->table.moe_index(layer);
  CHECK(moe_layer >= 0);
  impl_->hint(moe_layer, expected);
}

void Scheduler::set_prefetch(const GovernorOptions& options) { impl_->governor = Governor(options); }
void Scheduler::set_placement(const PlacementRules& rules) {
  if (impl_->devices) impl_->devices->placement().set_rules(rules);
}
void Scheduler::end_pass(i64 tokens, i64 ns, bool decode) { impl_->end_pass(tokens, ns, decode); }
i64 Scheduler::epoch() const { return impl_->epoch; }
void Scheduler::finish_epoch(i64 device, i64 epoch) {
  CHECK(epoch <= impl_->epoch);
  if (impl_->devices) impl_->devices->vram().finish(device, epoch);
}
void Scheduler::lose_device(i64 device) { impl_->lose_device(device); }
i64 Scheduler::give_up_memory(i64 bytes) { return impl_->give_up_memory(bytes); }
i64 Scheduler::experts_on_device(i64 device) const {
  return impl_->devices ? impl_->devices->placement().experts(device) : 0;
}
bool Scheduler::device_lost(i64 device) const { return impl_->devices && impl_->devices->vram().lost(device); }
i64 Scheduler::ram_slots() const { return impl_->slab.expected_slots(); }
i64 Scheduler::ram_bytes() const { return impl_->slab.expected_bytes(); }
const Governor& Scheduler::governor() const { return impl_->governor; }
void Scheduler::begin_piece(i64 tokens) { impl_->begin_piece(tokens); }
void Scheduler::end_piece_layer(LayerId layer, i64 tokens) { impl_->end_piece_layer(impl_->table.moe_index(layer), tokens); }
void Scheduler::end_piece() { impl_->end_piece(); }
void Scheduler::tend() {
  impl_->poll();
  impl_->fill_ahead();
  impl_->streamer.pump();
  impl_->read_hinted();
  impl_->fill();
}
void Scheduler::fill_empty_slots() {
  impl_->rank_experts();
  impl_->filling = true;
}
void Scheduler::record(Timeline& timeline, std::string_view lane) { impl_->streamer.record(timeline, lane); }

const ExpertTable& Scheduler::table() const { return impl_->table; }

const SchedulerStats& Scheduler::stats() const {
  impl_->stats.bytes_read = impl_->streamer.bytes_read();
  impl_->stats.disk_busy_ns = impl_->streamer.busy_ns();
  return impl_->stats;
}

ExpertTier Scheduler::tier(LayerId layer, ExpertId expert) const {
  return Impl::tier_of(impl_->entry({impl_->table.moe_index(layer), expert}));
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
