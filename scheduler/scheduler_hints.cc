// Hints: reads of experts that nobody waits for yet, what becomes of them, and what the governor is told of it.
#include "scheduler/scheduler_impl.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log.h"

namespace stoker {

namespace {

constexpr i64 kLeastAhead = 2;  // reads of hinted experts under way at a time

}  // namespace

void Scheduler::Impl::hint(i64 moe_layer, std::span<const ExpertExpectation> expected) {
  expectations.replace(moe_layer, expected, *policy);
  if (moe_layer == piece.ahead) piece.told = false;
  read_hinted();
}

// What is likely of the coming layers, the nearest first, but no more at a time than the drive reads until somebody asks again:
// what waits in a queue holds a slot, and the next hint may know better.
void Scheduler::Impl::read_hinted() {
  // Wants without a slot come first; what is free or given up goes to them.
  if (!governor.prefetching() || lease_is_short()) return;
  i64 most = std::max(streamer.window_bytes() / table.expert_bytes(layer_of(0)), kLeastAhead);
  i64 room = most - std::count_if(predicted.begin(), predicted.end(), [this](ExpertKey key) { return !entry(key).ahead; });
  bool started = false;
  for (i64 distance = 0; distance < std::min(governor.farthest(), table.moe_layers()); distance++) {
    i64 moe_layer = (next_layer + distance) % table.moe_layers();
    for (ExpertId expert : expectations.of_layer(moe_layer)) {
      ExpertKey key{moe_layer, expert};
      f32 probability = expectations.probability(key);
      if (probability < governor.threshold() || entry(key).state != State::absent) continue;
      if (room == 0 || !predict(key, probability)) break;
      started = true;
      room--;
    }
  }
  if (started) streamer.pump();
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
  i64& useful = e.ahead ? stats.ahead_useful_bytes : stats.useful_bytes;
  if (e.state == State::resident) {
    stats.predicted_hits++;
    useful += bytes;
    return;
  }
  std::erase(predicted, key);
  e.retry = true;
  stats.upgrades++;
  if (!streamer.upgrade(e.slot)) return;  // not begun: an ordinary miss from here on
  (e.ahead ? stats.ahead_bytes : stats.predicted_bytes) += bytes;
  useful += bytes;
}

// The layer has come, and does not want these. While there are empty slots what has begun is read to its end, and fills one.
void Scheduler::Impl::drop_predicted(i64 moe_layer) {
  bool full = slab.free_slots(class_of(moe_layer)) == 0;
  for (size_t i = predicted.size(); i > 0; i--) {
    ExpertKey key = predicted[i - 1];
    if (key.moe_layer == moe_layer && !cancel(predicted, key) && full) streamer.abandon(entry(key).slot);
  }
}

// Frees the slot of the latest of these that nobody waits for and whose read has not begun. False when there is none.
bool Scheduler::Impl::give_up(std::vector<ExpertKey>& reads) {
  for (size_t i = reads.size(); i > 0; i--)
    if (cancel(reads, reads[i - 1])) return true;
  return false;
}

bool Scheduler::Impl::cancel(std::vector<ExpertKey>& reads, ExpertKey key) {
  if (!streamer.cancel(entry(key).slot)) return false;
  std::erase(reads, key);
  policy->on_unpin(key);
  evict(key);
  return true;
}

void Scheduler::Impl::end_pass(i64 tokens, i64 ns, bool decode) {
  pass++;
  stats.disk_busy_ns = streamer.busy_ns();
  stats.bytes_read = streamer.bytes_read();
  SchedulerStats before = std::exchange(at_last_pass, stats);
  if (devices) move_between_passes(tokens);
  if (filled == static_cast<i64>(entries.size())) fill_again();
  if (!decode) return;
  // What fills empty slots keeps nobody from the drive.
  f64 bytes = static_cast<f64>(stats.bytes_read - before.bytes_read);
  f64 wanted = bytes > 0 ? std::max(0., 1 - static_cast<f64>(stats.filled_bytes - before.filled_bytes) / bytes) : 0;
  Governor::Verdict verdict = governor.observe({.tokens = tokens,
                                                .ns = ns,
                                                .disk_busy_ns = static_cast<i64>(wanted * static_cast<f64>(stats.disk_busy_ns - before.disk_busy_ns)),
                                                .predicted_bytes = stats.predicted_bytes - before.predicted_bytes,
                                                .useful_bytes = stats.useful_bytes - before.useful_bytes});
  if (verdict != Governor::Verdict::off || std::exchange(told, true)) return;
  log_info("prefetch is off for now: tokens/s with it {:+.1f} %", governor.gain() * 100);
}

}  // namespace stoker
