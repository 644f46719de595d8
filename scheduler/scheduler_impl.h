// What the scheduler's facade knows, for its own files and no other: an expert's place is one entry that acquire, hints,
// preload and devices all read and change, so the state is one struct, and each of these has a file of its own.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "scheduler/policy/piece_wants.h"
#include "scheduler/policy/residency_policy.h"
#include "scheduler/scheduler.h"
#include "scheduler/streamer.h"
#include "scheduler/tiers/slab.h"

namespace stoker {

// Pins (see residency_policy.h): one while a read is in flight, one while the lease wants or uses the expert.
struct Scheduler::Impl {
  static constexpr i64 kWaitSliceNs = 100'000'000;

  enum class State : u8 { absent, in_flight, resident, on_device };
  struct Entry {
    SlotId slot;
    VramSlot vram;  // on_device
    State state = State::absent;
    i32 want = -1;  // index into the lease's wants, while it waits for this read
    bool predicted = false;  // brought by a hint, or ahead of a piece, and not wanted yet
    bool ahead = false;      // predicted: the latter
    bool retry = false;      // its read began before anybody wanted it: a failure of that is no failure of the lease
    bool fills = false;      // it is read because its slot was empty
  };
  enum class Phase : u8 { queued, loading, ready, handed_out, released };
  struct Want {
    ExpertId expert;
    Phase phase = Phase::queued;
  };

  // Of a prompt, between begin_piece() and end_piece().
  struct Piece {
    i64 tokens = 0;   // 0: there is none
    i64 ahead = -1;   // moe index of the layer that is read for it; -1: none
    std::vector<ExpertExpectation> wants;  // of this layer
    size_t next = 0;  // of these, whose read has not begun
    bool told = false;  // the policy expects them
  };

  Impl(const ExpertTable& t, const Plan& p, std::unique_ptr<ResidencyPolicy> residency, Reader& r,
       const Clock& c, SlabOptions slab_options, Copier* copier);
  ~Impl();

  // --- slots: scheduler_slots.cc
  void collect_memory();
  SlotId find_slot(i64 moe_layer);
  void start_read(ExpertKey key, SlotId slot, ReadPriority priority);
  void start_admitted(ExpertKey key, SlotId slot, ReadPriority priority);
  void fetch(ExpertKey key, SlotId slot, ReadPriority priority);
  void evict(ExpertKey key);
  void land(const FetchDone& done);
  void poll();
  void block();
  void check_slots();  // aborts when one is nobody's
  void drain();
  i64 give_up_memory(i64 bytes);
  void vacate(SlotId slot, i64 holder);
  void lower_capacity(size_t slot_class);

  // --- the lease: scheduler_lease.cc
  i64 tokens_of(std::span<const ExpertRequest> requests) const;
  void begin_lease(i64 moe_layer, std::span<const ExpertRequest> requests);
  void start_queued();
  bool lease_is_short() const;  // wants wait for slots
  void hand_out(std::vector<ReadyExpert>& ready);
  Status wait(std::vector<ReadyExpert>& ready);
  void release(const ReadyExpert& expert);
  void end_lease();

  // --- predictions: scheduler_hints.cc
  void hint(i64 moe_layer, std::span<const ExpertExpectation> expected);
  void read_hinted();
  bool predict(ExpertKey key, f32 probability);
  void use_predicted(Entry& e, ExpertKey key);
  void drop_predicted(i64 moe_layer);
  bool give_up(std::vector<ExpertKey>& reads);
  bool cancel(std::vector<ExpertKey>& reads, ExpertKey key);
  void end_pass(i64 tokens, i64 ns, bool decode);

  // --- pieces of a prompt: scheduler_ahead.cc
  void begin_piece(i64 tokens);
  void end_piece();
  bool piece_arrives(i64 moe_layer, std::span<const ExpertRequest> requests);
  void aim_piece(i64 moe_layer);
  void fill_ahead();

  // --- devices, nothing of this happens without them: scheduler_devices.cc
  i64 most_kept(size_t slot_class) const;
  void keep_exchange_slots(size_t slot_class);
  DeviceTier::RamPlace ram_place(ExpertKey key, SlotId slot) const;
  void poll_devices();
  void settle_exchanges(bool border);
  void end(const Exchange& exchange);
  bool give_up_exchange();
  void end_epoch();
  void move_between_passes(i64 tokens);
  void end_piece_layer(i64 moe_layer, i64 tokens);
  void offer(ExpertKey key);
  void limit_moves();
  void begin_moves(std::span<const ExpertKey> candidates, std::span<const i64> most_moves);
  void lose_device(i64 device);
  i64 device_room(size_t slot_class) const;
  bool has_empty_slots(size_t slot_class);
  i64 share_left(i64 moe_layer);
  void fill_devices(i64 moe_layer);

  // --- empty slots: scheduler_fill.cc
  void rank_experts();
  void rank_layer(i64 moe_layer);
  ExpertKey ranked_expert(i64 moe_layer, i64 rank) const;
  void fill();
  void fill_again();
  void use_fill(Entry& e, ExpertKey key);
  void land_fill(const FetchDone& done, ExpertKey key);

  // --- preload: scheduler_preload.cc
  std::vector<i64> layers_in_file_order() const;
  i64 preload_bytes() const;
  void warm_devices();
  i64 warm_share(i64 moe_layer) const;
  i64 warm_next(i64 moe_layer, i64 rank);
  SlotId wait_for_free_slot(i64 slot_class);

  size_t index_of(ExpertKey key) const {
    return static_cast<size_t>(key.moe_layer * table.experts_per_layer() + key.expert.value);
  }
  Entry& entry(ExpertKey key) { return entries[index_of(key)]; }
  static ExpertTier tier_of(const Entry& e);
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
  Governor governor{{PrefetchMode::off}};
  PieceWants piece_wants;
  Piece piece;
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
  i64 next_layer = 0;       // the one after the last lease's
  std::vector<Want> wants;  // in the order of the requests
  std::vector<DeviceExpert> on_devices;  // of the lease
  size_t next_queued = 0;   // wants before this one are not queued
  std::vector<i32> landed;  // wants that are ready and not handed out, in the order they became so
  i64 handed_out = 0;       // and not released
  i64 pending = 0;          // not yet handed out
  Status lease_failure;
  Status other_failure;  // of reads that no lease waits for

  bool filling = false;             // empty slots are filled
  std::vector<i32> ranked;          // [moe layers, experts] ids, likeliest first; once somebody asks
  i64 filled = 0;                   // of them, looked at
  std::vector<ExpertKey> fills;     // reads under way for empty slots

  std::vector<i64> warm_order;  // moe layers, once warming has begun
  i64 warmed = 0;               // experts looked at
  i64 warm_filled = 0;          // of these layers, those of which devices have got their share
};

}  // namespace stoker
