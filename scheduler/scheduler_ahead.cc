// A piece of a prompt goes from layer to layer: what it will probably want of the next one is read while this one is
// computed. The reads are predictions as hints make them, so that demand overtakes them, a lease takes their slots or goes on
// with what has begun, and no expert is read twice; but there are as many as slots can be had for, because nearly all of them
// are wanted. Rows of others may pass between two steps of the piece: their leases and hints leave its reads alone.
#include "scheduler/scheduler_impl.h"

#include <algorithm>

namespace stoker {

namespace {

// Below it a read is more often in vain than not.
constexpr f32 kLikely = .5f;
// Others are read while the drive has next to nothing else to do: on one that has, what is in vain costs as much as what is not.
constexpr f32 kSure = .9f;
constexpr i64 kUnsureReads = 4;

}  // namespace

void Scheduler::Impl::begin_piece(i64 tokens) {
  end_piece();
  if (plan.all_resident || governor.state() == Governor::State::fixed_off) return;
  piece.tokens = tokens;
  aim_piece(0);
}

void Scheduler::Impl::end_piece() {
  if (piece.tokens == 0) return;
  piece.tokens = 0;
  if (piece.ahead < 0) return;
  drop_predicted(piece.ahead);
  expectations.replace(piece.ahead, {}, *policy);
  aim_piece(-1);
}

// Whether these wants are the piece's: as many as its tokens choose, of the layer it comes to next. What else looks like that
// is mistaken for it, which costs reads and no more.
bool Scheduler::Impl::piece_arrives(i64 moe_layer, std::span<const ExpertRequest> requests) {
  if (piece.tokens == 0 || moe_layer != piece.ahead) return false;
  i64 pairs = 0;
  for (const ExpertRequest& request : requests) pairs += request.tokens;
  if (pairs != piece.tokens * table.top_k()) return false;
  piece_wants.on_layer(moe_layer, piece.tokens);
  for (const ExpertRequest& request : requests) piece_wants.on_use({moe_layer, request.expert}, request.tokens);
  return true;
}

void Scheduler::Impl::aim_piece(i64 moe_layer) {
  piece.ahead = moe_layer < table.moe_layers() ? moe_layer : -1;
  piece.next = 0;
  piece.told = false;
  piece.wants.clear();
  streamer.set_far(piece.ahead >= 0);
  if (piece.ahead < 0) return;
  for (i64 e = 0; e < table.experts_per_layer(); e++) {
    f32 probability = piece_wants.probability({moe_layer, ExpertId(e)}, piece.tokens);
    if (probability >= kLikely) piece.wants.push_back({ExpertId(e), probability});
  }
  // What is sure in the file's order, the rest by how likely it is.
  std::sort(piece.wants.begin(), piece.wants.end(), [](const ExpertExpectation& a, const ExpertExpectation& b) {
    f32 pa = std::min(a.probability, kSure), pb = std::min(b.probability, kSure);
    return pa != pb ? pa > pb : a.expert.value < b.expert.value;
  });
  fill_ahead();
  streamer.pump();
}

// As far as there are slots of others that are worth less. Wants of the lease come first, and what it uses is pinned.
void Scheduler::Impl::fill_ahead() {
  if (piece.ahead < 0 || (leased && (lease_layer == piece.ahead || lease_is_short()))) return;
  if (!piece.told) expectations.replace(piece.ahead, piece.wants, *policy);
  piece.told = true;
  for (; piece.next < piece.wants.size(); piece.next++) {
    const ExpertExpectation& want = piece.wants[piece.next];
    ExpertKey key{piece.ahead, want.expert};
    if (entry(key).state != State::absent) continue;
    if (want.probability < kSure && streamer.under_way() >= kUnsureReads) return;
    if (!predict(key, want.probability)) return;
    entry(key).ahead = true;
  }
}

}  // namespace stoker
