// The lease: from the wants of one layer to experts that are handed out and released.
#include "scheduler/scheduler_impl.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "scheduler/policy/predictor.h"
#include "scheduler/tiers/slice.h"

namespace stoker {

// A prompt's are counted; rows of several sequences are one token to the policy, which values what the next batch wants.
i64 Scheduler::Impl::tokens_of(std::span<const ExpertRequest> requests) const {
  i64 pairs = 0, most = 0;
  for (const ExpertRequest& request : requests) {
    pairs += request.tokens;
    most = std::max<i64>(most, request.tokens);
  }
  i64 tokens = div_up(pairs, std::min(table.top_k(), table.experts_per_layer()));
  return tokens > Predictor::kMaxRows ? tokens : most;
}

void Scheduler::Impl::begin_lease(i64 moe_layer, std::span<const ExpertRequest> requests) {
  CHECK(!leased && moe_layer >= 0);
  leased = true;
  lease_layer = moe_layer;
  next_layer = (moe_layer + 1) % table.moe_layers();
  wants.clear();
  landed.clear();
  on_devices.clear();
  next_queued = 0;
  handed_out = 0;
  pending = static_cast<i64>(requests.size());
  lease_failure = {};
  poll();
  policy->on_layer(moe_layer, tokens_of(requests));
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
    if (e.predicted)
      use_predicted(e, key);
    else if (e.fills)
      use_fill(e, key);
    else if (e.state == State::in_flight)
      streamer.upgrade(e.slot);  // begun by a lease that was dropped, or by warming
    policy->on_pin(key);
    wants[i].phase = e.state == State::resident ? Phase::ready : Phase::loading;
    if (e.state == State::resident)
      landed.push_back(static_cast<i32>(i));
    else
      e.want = static_cast<i32>(i);
  }
  bool of_piece = piece_arrives(moe_layer, requests);
  // What a piece waits for stays when rows of others come to its layer; the policy has forgotten what it expects.
  if (of_piece || moe_layer != piece.ahead) drop_predicted(moe_layer);
  if (moe_layer == piece.ahead) piece.told = false;
  start_queued();
  if (of_piece) aim_piece(moe_layer + 1);
  read_hinted();
  fill();
}

bool Scheduler::Impl::lease_is_short() const {
  return leased && std::any_of(wants.begin() + static_cast<std::ptrdiff_t>(next_queued), wants.end(),
                               [](const Want& w) { return w.phase == Phase::queued; });
}

// Starts reads for queued wants, in order, as far as there are slots.
void Scheduler::Impl::start_queued() {
  for (; next_queued < wants.size(); next_queued++) {
    Want& want = wants[next_queued];
    if (want.phase != Phase::queued) continue;
    ExpertKey key{lease_layer, want.expert};
    SlotId slot = find_slot(lease_layer);
    while (!slot.valid() && (give_up(fills) || give_up(predicted))) slot = find_slot(lease_layer);
    while (!slot.valid() && give_up_exchange()) slot = find_slot(lease_layer);
    if (!slot.valid()) break;
    start_read(key, slot, ReadPriority::demand);
    policy->on_pin(key);
    entry(key).want = static_cast<i32>(next_queued);
    want.phase = Phase::loading;
  }
  fill_ahead();
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
    read_hinted();
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

}  // namespace stoker
