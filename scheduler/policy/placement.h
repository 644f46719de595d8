// Placement: which experts should be in the memory of devices instead of RAM. A layer beside the residency policy, which
// stays the authority for RAM and whose values (ResidencyPolicy::worth) decide here too.
//
// A promotion is an exchange: the expert goes RAM -> device, its victim device -> RAM, where it is still hotter than most.
// Into a free slot it goes alone. What is gained per token is the difference of their worth times what the CPU takes
// longer for such an expert than the device; so a device that is slower than the CPU gets none. A copy costs bandwidth
// of the memory that the CPU computes from, hence:
//   - candidates are the experts that were just used in RAM: the others' worth has only faded;
//   - a promoted one must be worth more than its victim by a factor and by a margin (hysteresis), and the victim must have
//     been there for a while (dwell);
//   - every device has an allowance per token, in time of its link.
// At first all of RAM are candidates, and neither dwell nor allowance hold, until nothing is left to gain.
//
// A prompt says more of its answer than what was before, and its pieces take long, so it does not wait for its end: each time
// that a layer of a piece has ended, the layer's experts are candidates. What they are worth is counted from many tokens
// and not from the last few, so a small margin is enough; the allowance is that of the piece's tokens, a layer's part of it at
// a time; and nobody leaves whose layer is still to come, because what the piece wants there is not known.
// Devices may be unequal: memory is filled by who has the least work, copies go where the link has time, and among
// victims of about the same worth the device with less expected work takes the newcomer.
//
// Pure: events in, commands out. Costs one value per expert in VRAM and a sort of the candidates per token.
// Owner: the scheduler's thread.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "scheduler/plan.h"
#include "scheduler/policy/residency_policy.h"

namespace stoker {

// The best of a few tried on a simulated tower with synthetic V3 traces: without a margin worth mentioning, a token's 80
// exchanges took 1.3 GB of the memory's bandwidth, and a fifth of the speed.
struct PlacementRules {
  f64 factor = 1.3;
  f64 margin = 0.1;  // in units of worth: probability that a token wants the expert
  // An exchange takes the memory of a tower 0.34 ms for an expert of 10.8 MB, and gains 0.15 ms times the difference of worth
  // for each token: with this one it is worth it after 80 tokens.
  f64 piece_margin = 0.03;
  i64 dwell_tokens = 16;
  i64 allowance_ns = 5'000'000;  // of each direction of a device's link, per token
  bool all_of_ram = false;  // is offered at every border: for values that rise without a use
};

class Placement {
 public:
  struct Move {
    ExpertKey up;
    i32 device = 0;
    std::optional<ExpertKey> down;  // none: into a free slot
  };
  // What there is to move with.
  struct Room {
    std::span<const i64> device_slots;  // [devices, classes] free now
    std::span<const i64> ram_slots;     // [classes] free for experts that come back
    std::span<const i64> most_moves;    // [classes]: each keeps an expert in RAM from being evicted for a while
  };

  Placement(const Plan& plan, i64 experts_per_layer, const PlacementRules& rules = {});

  // Before anything else.
  void set_rules(const PlacementRules& rules);

  // An expert in RAM that the batch at hand wanted.
  void on_use_in_ram(ExpertKey key);
  // `tokens` tokens have passed.
  void on_pass(i64 tokens);
  // So many tokens of a prompt have passed this layer, and choose() comes for it. Holds until the next on_pass.
  void on_piece_layer(i64 moe_layer, i64 tokens);
  // Whether choose() should be offered all experts in RAM.
  bool offers_all() const { return catching_up_ || rules_.all_of_ram; }

  // Moves to begin now, best first. `candidates` are in RAM, in any order; those under way already are passed over.
  // Forgets what on_use_in_ram has collected. Moves are under way until on_end.
  void choose(const ResidencyPolicy& policy, std::span<const ExpertKey> candidates, const Room& room,
              std::vector<Move>& moves);
  std::span<const ExpertKey> used_in_ram() const { return used_; }
  // Both experts have changed places, or (a copy has failed) none.
  void on_end(const Move& move, bool moved);
  // All its experts are gone. Moves under way to or from it still end, with moved = false.
  void on_lost(i64 device);

  // A move of this expert is under way.
  bool moving(ExpertKey key) const { return places_[static_cast<size_t>(node(key))].moving; }
  i64 experts(i64 device) const { return static_cast<i64>(devices_[static_cast<size_t>(device)].count); }

 private:
  static constexpr i32 kNowhere = -1;
  struct Place {
    i32 device = kNowhere;
    i32 position = 0;  // in its list
    i64 since = 0;     // tokens
    bool moving = false;
  };
  struct Candidate {
    f64 worth;
    i64 node;
    bool operator<(const Candidate& other) const {  // best first
      return worth != other.worth ? worth > other.worth : node < other.node;
    }
  };
  struct Device {
    std::vector<std::vector<i32>> experts;    // [classes] nodes
    std::vector<std::vector<Candidate>> rank;  // [classes] of choose(): those that may leave, the least last
    std::vector<i64> free;                     // [classes] of choose()
    std::vector<i64> kept;                     // [classes] that must stay free
    f64 gb_per_second = 0, link_gb_per_second = 0;
    f64 credit_bytes = 0;                      // allowance left
    f64 most_bytes = 0;                        // of it
    f64 allowance_bytes = 0;                   // per token
    f64 load_ns = 0;                           // expected per token
    i64 count = 0;
  };

  ExpertKey key(i64 node) const { return {node / per_layer_, ExpertId(node % per_layer_)}; }
  i64 node(ExpertKey k) const { return k.moe_layer * per_layer_ + k.expert.value; }
  size_t class_of(i64 node) const { return static_cast<size_t>(class_of_layer_[static_cast<size_t>(node / per_layer_)]); }
  Place& place(i64 node) { return places_[static_cast<size_t>(node)]; }
  void rank_victims(const ResidencyPolicy& policy, const Room& room);
  std::optional<Move> best_move(const Candidate& candidate);
  bool may_leave(i64 node) const;
  f64 saved_ns(const Device& device, size_t slot_class) const;
  void begin(const Move& move, f64 worth);
  void enter(i64 node, i32 device);
  void leave(i64 node);

  PlacementRules rules_;
  i64 per_layer_;
  std::vector<i64> class_of_layer_;
  std::vector<i64> expert_bytes_;  // [classes] on a device
  f64 cpu_gb_per_second_;
  i64 now_ = 0;                    // tokens
  bool catching_up_ = true;        // nothing is known yet
  i64 piece_tokens_ = 0;           // of the piece under way; 0: none
  i64 piece_layer_ = 0;            // the last that it has passed
  bool short_of_room_ = false;     // of choose(): a move was worth it and had no room
  std::vector<Place> places_;      // [moe layers * experts]
  std::vector<Device> devices_;
  std::vector<i64> ram_slots_, moves_left_;  // [classes] of choose()
  std::vector<ExpertKey> used_;
  std::vector<Candidate> candidates_;
};

}  // namespace stoker
