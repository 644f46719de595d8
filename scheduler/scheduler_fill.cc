// Fill: slots that are empty are given to experts that nobody has asked for, most popular first, while nothing else is
// read. The first use of an expert then need not be a miss; whoever is never used leaves first.
#include "scheduler/scheduler_impl.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/log.h"

namespace stoker {

namespace {

constexpr i64 kLeastFilling = 2, kMostFilling = 32;  // reads under way at a time

}  // namespace

void Scheduler::Impl::rank_experts() {
  for (i64 layer = 0; layer < table.moe_layers(); layer++) rank_layer(layer);
}

// Where not all fit, those come first that will most probably be wanted: what the policy makes of popularity and of uses so
// far. Else they are read as they lie in the file.
void Scheduler::Impl::rank_layer(i64 moe_layer) {
  i64 experts = table.experts_per_layer();
  ranked.resize(entries.size());
  auto first = ranked.begin() + static_cast<std::ptrdiff_t>(moe_layer * experts);
  std::iota(first, first + experts, 0);
  if (plan.all_resident) return;
  std::vector<f64> worth;
  for (i64 e = 0; e < experts; e++) worth.push_back(policy->worth({moe_layer, ExpertId(e)}));
  auto of = [&](i32 e) { return worth[static_cast<size_t>(e)]; };
  std::stable_sort(first, first + experts, [&](i32 a, i32 b) { return of(a) > of(b); });
}

ExpertKey Scheduler::Impl::ranked_expert(i64 moe_layer, i64 rank) const {
  return {moe_layer, ExpertId(ranked[static_cast<size_t>(moe_layer * table.experts_per_layer() + rank)])};
}

// The layers by turns, so that each has as many when the slots run out.
void Scheduler::Impl::fill() {
  i64 total = static_cast<i64>(entries.size()), layers = table.moe_layers();
  if (!filling || filled == total || streamer.under_way() > static_cast<i64>(fills.size())) return;
  i64 most = std::clamp(streamer.window_bytes() / table.expert_bytes(layer_of(0)), kLeastFilling, kMostFilling);
  bool started = false;
  for (; filled < total && static_cast<i64>(fills.size()) < most; filled++) {
    ExpertKey key = ranked_expert(filled % layers, filled / layers);
    if (entry(key).state != State::absent) continue;
    SlotId slot = slab.take(class_of(key.moe_layer));
    if (!slot.valid()) continue;
    policy->on_fill(key);
    start_admitted(key, slot, ReadPriority::spare);
    entry(key).fills = true;
    fills.push_back(key);
    started = true;
  }
  if (started) streamer.pump();
}

// The arena grows, and experts that go to devices leave their slots: there may be room for those that had none.
void Scheduler::Impl::fill_again() {
  for (size_t c = 0; c < plan.classes.size(); c++)
    if (slab.free_slots(static_cast<i64>(c)) > 0) filled = 0;
}

// Somebody wants it.
void Scheduler::Impl::use_fill(Entry& e, ExpertKey key) {
  e.fills = false;
  e.retry = true;
  std::erase(fills, key);
  streamer.upgrade(e.slot);
}

void Scheduler::Impl::land_fill(const FetchDone& done, ExpertKey key) {
  entry(key).fills = false;
  std::erase(fills, key);
  stats.filled_bytes += table.expert_bytes(done.layer);
  if (done.status.ok()) return;
  filling = false;
  log_warning("{}; experts are read when they are wanted from now on", done.status.message());
}

}  // namespace stoker
