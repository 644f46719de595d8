// Hints: reads of experts that nobody waits for yet, what becomes of them, and what the governor is told of it.
#include "scheduler/scheduler_impl.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log.h"

namespace stoker {

namespace {

constexpr i64 kPredictedPerHint = 4;  // reads that one hint may start

}  // namespace

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

}  // namespace stoker
