// ResidencyPolicy: which experts stay in RAM. Pure: no clock, no I/O, no thread. Events in, commands out, so
// that the same object runs under the engine, the simulator and the tests. The same events always give the
// same commands.
//
// Life of an expert:  absent --on_admit--> resident and pinned (its bytes are on the way)
//                     resident --on_pin / on_unpin--> in use, counted; never chosen as a victim while pinned
//                     resident, not pinned --choose_victim, on_evict--> absent
// Owner: the scheduler's thread.
#pragma once

#include <optional>

#include "kernels/base/ids.h"
#include "kernels/base/types.h"

namespace stoker {

// An expert of a model: index into ExpertTable::layers() and the expert within that layer.
struct ExpertKey {
  i64 moe_layer = 0;
  ExpertId expert;
  bool operator==(const ExpertKey&) const = default;
};

class ResidencyPolicy {
 public:
  virtual ~ResidencyPolicy() = default;

  // The class has this many slots from now on. Rises while the arena grows; falls when memory is given back, after those
  // that have to go have gone.
  virtual void on_capacity(i64 slot_class, i64 slots) = 0;
  // A batch of `tokens` rows comes to this layer: its uses follow, and what was expected of it is over.
  virtual void on_layer(i64 moe_layer, i64 tokens) = 0;
  // The batch wants this expert, wherever it is; `gate_weight` is the sum of its router weights over `tokens` rows.
  virtual void on_use(ExpertKey key, i64 tokens, f32 gate_weight) = 0;
  // The next batch that comes to this expert's layer wants it with this probability. Replaces what was expected of
  // it before.
  virtual void on_expect(ExpertKey key, f32 probability) = 0;
  // It has got a slot. Counts as one on_pin.
  virtual void on_admit(ExpertKey key) = 0;
  // The same for one that nobody has asked for: it has got a slot that was empty, and should leave before all others.
  virtual void on_fill(ExpertKey key) { on_admit(key); }
  virtual void on_pin(ExpertKey key) = 0;
  virtual void on_unpin(ExpertKey key) = 0;
  // It has lost its slot; was not pinned.
  virtual void on_evict(ExpertKey key) = 0;

  // The expert whose slot an absent expert of `moe_layer` should take; none when all that could be given up
  // are pinned. A resident expert of the same slot class, not pinned. Changes nothing: on_evict follows if
  // the advice is taken. With nothing pinned and at least one slot there is always one.
  virtual std::optional<ExpertKey> choose_victim(i64 moe_layer) const = 0;
  // The same for an expert that is only expected, with this probability: none as well when all candidates are worth
  // more than it.
  virtual std::optional<ExpertKey> choose_victim_for(ExpertKey expected, f32 probability) const = 0;

  // How much this expert should be in fast memory, wherever it is now: the probability that the next batch of its layer
  // wants it, for policies that know one; others say worth_of_recency of its last use, 0 when it has had none.
  virtual f64 worth(ExpertKey key) const = 0;
};

// Of what was used so many turns of layers ago: 1 / (tokens since then + 1).
constexpr f64 worth_of_recency(i64 turns, i64 layers) {
  return static_cast<f64>(layers) / static_cast<f64>(layers + turns);
}

}  // namespace stoker
