// DeviceTier: the experts that are in devices' memory, and the exchanges under way between there and RAM. The scheduler
// owns what concerns RAM (pins, slots, the residency policy); this is the rest: which moves are worth it (Placement),
// slots on the devices (Vram), copies (Copier).
//
// An exchange has one or two copies. Until both have landed and the pass at hand has ended (a border), each expert is
// where it was, so that no pass sees one in two places or in none. When one fails, or is given up, nothing has changed.
//
// Owner: the scheduler's thread. Nothing is allocated after construction.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "scheduler/model_file/expert_table.h"
#include "scheduler/plan.h"
#include "scheduler/policy/placement.h"
#include "scheduler/tiers/copier.h"
#include "scheduler/tiers/vram.h"

namespace stoker {

// Where in a device's memory an expert is: offsets from the beginning of the device's arena for experts.
struct DeviceExpert {
  i64 request = 0;  // index into the span given to acquire()
  i32 device = 0;
  std::array<i64, 3> at_device{};  // gate, up, down
};

struct Exchange {
  Placement::Move move;
  VramSlot to;      // where `up` goes
  SlotId ram_slot;  // where `down` goes, when there is one
  i32 copies_left = 0;
  bool failed = false;    // a copy, or the device
  bool given_up = false;  // by the scheduler, which needs the slot in RAM

  bool good() const { return !failed && !given_up; }
};

class DeviceTier {
 public:
  // All must outlive it. Throws Error when the plan asks for more devices or memory than the copier has.
  DeviceTier(const ExpertTable& table, const Plan& plan, Copier& copier);

  Placement& placement() { return placement_; }
  Vram& vram() { return vram_; }

  // What placement would move, with so many slots in RAM for experts that come back, and so many moves per class.
  std::span<const Placement::Move> choose(const ResidencyPolicy& policy, std::span<const ExpertKey> candidates,
                                          std::span<const i64> ram_slots, std::span<const i64> most_moves);

  // An expert's place in RAM: a slot, and its matrices within it.
  struct RamPlace {
    SlotId slot;
    std::array<std::byte*, 3> matrices{};
  };
  // Begins a move that choose() has returned. `down_from` is where the victim is on the device.
  void start(const Placement::Move& move, const RamPlace& up, const RamPlace& down, VramSlot down_from);
  // Takes in what has landed and hands the copier what it accepts. Never blocks.
  void poll();
  // The next exchange that has ended; good ones only at a border. False when there is none.
  bool next(bool border, Exchange& ended);
  // Gives up the latest exchange that still could be, one whose copies have landed before all others; false when there is
  // none.
  bool give_up();
  // Blocks until poll() would find something, or for `timeout_ns`.
  void wait(i64 timeout_ns) { copier_.wait(timeout_ns); }
  i64 under_way() const { return static_cast<i64>(exchanges_.size()); }  // not yet given out by next()
  i64 under_way(i64 slot_class) const;

  // A device that copies have found lost since the last call; -1: none.
  i64 next_lost();
  // All its slots are gone; exchanges with it end as failed.
  void lose(i64 device);

  DeviceExpert expert_at(VramSlot slot, i64 moe_layer) const;

 private:
  struct Flight {
    Exchange exchange;
    u64 id;
  };
  Copy make_copy(u64 tag, CopyDirection direction, ExpertKey key, VramSlot slot, const RamPlace& ram) const;
  void hand_out();
  Flight* find(u64 id);

  const ExpertTable& table_;
  const Plan& plan_;
  Copier& copier_;
  Vram vram_;
  Placement placement_;
  std::vector<VramLayout> layouts_;  // [moe layers]
  std::vector<i64> device_slots_;    // [devices, classes] free, for choose()
  std::vector<Placement::Move> moves_;
  std::vector<Flight> exchanges_;    // in the order in which they began
  std::vector<Copy> waiting_;        // copies the copier has not taken, oldest first; read from waiting_head_
  size_t waiting_head_ = 0;
  i64 submitted_ = 0;                // copies not yet answered
  std::vector<CopyDone> results_;
  std::vector<i64> found_lost_;
  u64 next_id_ = 0;
};

}  // namespace stoker
