// Scheduler: the facade the runtime sees. It decides which experts are in RAM and in devices' memory, and hands out
// leases on them.
//
//   Lease lease = scheduler.acquire(layer, requests);     // never blocks; reads for all misses are on their way
//   give lease.on_devices() to the devices
//   while (lease.pending() > 0) { lease.wait(ready); compute(ready); lease.release(ready); }
//
// Tiers are exclusive: an expert is in RAM, on one device, or on disk alone. Who is on which device changes only in
// end_pass, between two passes: an epoch. What on_devices() says holds until the device has done the epoch's work, which
// the runtime reports (finish_epoch); only then is a slot that an expert has left written again. A miss is read into RAM
// and is the CPU's; experts go to devices and back by worth (policy/placement.h), never on demand.
//
// A lease may ask for more experts than there are slots: reads of the later ones start as earlier ones are
// released, so a prompt chunk that touches a whole layer goes through a small budget in waves.
// Owner: the engine thread. Reader and Clock are injected, so the simulator runs this code unchanged.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "scheduler/device_tier.h"
#include "scheduler/expectations.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/plan.h"
#include "scheduler/policy/governor.h"
#include "scheduler/scheduler_stats.h"
#include "scheduler/scheduler_view.h"
#include "scheduler/tiers/reader.h"

namespace stoker {

struct ExpertRequest {
  ExpertId expert;
  i32 tokens = 1;         // how many tokens of this batch want it
  f32 gate_weight = 1.f;  // sum of their router weights
};

// An expert that is in memory now. Valid until released.
struct ReadyExpert {
  i64 request = 0;  // index into the span given to acquire()
  const std::byte* gate = nullptr;
  const std::byte* up = nullptr;
  const std::byte* down = nullptr;
};

class ResidencyPolicy;
class Timeline;
struct SlabOptions;

class Scheduler {
 public:
  // `table`, `reader` and `clock` must outlive the scheduler. Throws Error when the smallest useful arena
  // cannot be allocated, or the reader does not suit the plan.
  Scheduler(const ExpertTable& table, const Plan& plan, std::unique_ptr<ResidencyPolicy> policy,
            Reader& reader, const Clock& clock);
  // The same with a say in how the arena grows (see slab.h): the engine passes fault_in_if_available of
  // machine.h, tests theirs. The callbacks about pieces and the minimum are the scheduler's; what they hold
  // is replaced.
  // With a `copier`, which must outlive the scheduler too, the plan's devices take part.
  Scheduler(const ExpertTable& table, const Plan& plan, std::unique_ptr<ResidencyPolicy> policy,
            Reader& reader, const Clock& clock, SlabOptions slab_options, Copier* copier = nullptr);
  // Waits for reads and copies that are under way.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // What acquire() hands out. Dropping it early (error, Ctrl-C) is fine: its experts may be reused, reads
  // that are under way finish on their own, those that have not begun are cancelled.
  class Lease {
   public:
    // Those of the requests that are in devices' memory. wait() does not name them, nothing need be released.
    std::span<const DeviceExpert> on_devices() const;
    // Appends experts that have become ready; blocks only if none is ready, some are pending and none that
    // was handed out is still unreleased. Failure: a read failed (the lease is then dead: destroy it).
    Status wait(std::vector<ReadyExpert>& ready);
    // The expert's memory may be reused from now on.
    void release(const ReadyExpert& expert);
    // Experts that are not on devices and not yet handed out by wait().
    i64 pending() const;
    ~Lease();
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&&) = delete;

   private:
    friend class Scheduler;
    explicit Lease(Scheduler* owner);
    Scheduler* owner_;
  };

  // One lease at a time. Requests name distinct experts of one layer.
  Lease acquire(LayerId layer, std::span<const ExpertRequest> requests);

  // Nothing is ever evicted: a layer's wants may as well be several leases.
  bool has_slot_for_all() const;

  // What the next batch that comes to this layer will probably want. Replaces what was said of the layer before and
  // ends when it comes. Tells the policy, and starts reads of a few likely ones that are absent, as far as the
  // governor allows and without touching what the current lease needs. A failed one is read again when wanted.
  void hint(LayerId layer, std::span<const ExpertExpectation> expected);
  void set_prefetch(const GovernorOptions& options);  // off until called
  void set_placement(const PlacementRules& rules);    // the default ones until called; before the first pass

  // A piece of a prompt, so many tokens at once, goes through all layers: until end_piece() the experts that it will
  // probably want of the layer it comes to next are read while the current one's lease lasts and after it, as far as slots
  // can be had. Between its leases there may be others', of fewer tokens. Nothing while prefetch is off.
  void begin_piece(i64 tokens);
  // A layer of a piece has ended, beginning to end of its lease, and devices have done their part. Ends the epoch as end_pass
  // does: the experts that the piece used there move to devices by what the prompt says of them, while the next layer is
  // computed. With finish_epoch for each device just before. No lease may exist.
  void end_piece_layer(LayerId layer, i64 tokens);
  void end_piece();  // also when there is none

  // A pass of the whole model has ended: the governor learns from those that decode (one token per sequence). With
  // devices: ends the epoch, experts whose copies have landed change places, and new exchanges begin. No lease may exist.
  void end_pass(i64 tokens, i64 ns, bool decode);
  // The epoch under way: 0, and one more with every end_pass.
  i64 epoch() const;
  // The device has done all that it was given in this epoch and before. Once per device and epoch at most, ascending.
  void finish_epoch(i64 device, i64 epoch);
  // The device has failed: its experts are on disk alone from now on, and it gets no more. Copies may find out as well.
  void lose_device(i64 device);
  // Something else needs memory: at least so many bytes of the arena go back to the machine, if it has as many beside the
  // least that works, and it does not grow any more. Waits for reads and copies that are under way; experts that were there
  // are on disk alone. Bytes given back. No lease may exist.
  i64 give_up_memory(i64 bytes);
  // Experts in the device's memory; 0 when it is lost.
  i64 experts_on_device(i64 device) const;
  bool device_lost(i64 device) const;
  // What RAM has room for: the plan, less what the machine refused or got back.
  i64 ram_slots() const;
  i64 ram_bytes() const;
  const Governor& governor() const;
  // Lets reads make progress while the runtime computes something else. Cheap.
  void tend();

  // From now on the disk's reads are recorded in a lane of this name. The timeline must outlive the scheduler.
  void record(Timeline& timeline, std::string_view lane);

  // Reads every expert that has a free slot, in file order, before the first token. `progress(done, total)`
  // is called with bytes now and then (may be null); returning false stops early (Ctrl-C): what has begun
  // still lands. For models that fit. No lease may exist.
  Status preload(bool (*progress)(i64 done, i64 total, void* context), void* context);
  // The same beside the runtime's work: starts as many of these reads as a demand can wait behind, and gives devices their
  // share of each layer that is in RAM. Where experts do not all fit, every layer gets its share of the slots, for those of
  // most worth to the policy; what is never used leaves first. To be called between steps, and now and then while idle,
  // until `done` is `total`.
  // A read that fails is warned about, and left to whom it matters. No lease may exist.
  struct Warmth {
    i64 done = 0, total = 0;  // experts looked at, and all
  };
  Warmth warm();

  // From now on slots that are empty are filled while nothing else is read: with what the policy expects, or, of what it
  // knows nothing of, in file order. For models that do not fit. A read that fails is warned about and ends it.
  void fill_empty_slots();

  // Up to now. Engine thread.
  const SchedulerStats& stats() const;
  ResidencyView view() const;
  ExpertTier tier(LayerId layer, ExpertId expert) const;  // where it is now
  const ExpertTable& table() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace stoker
