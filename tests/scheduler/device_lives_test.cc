// Lives of the real scheduler with devices that have threads: its copier over host devices, whose streams are late by
// chance, some of which fail or are lost. Every expert that RAM or a device is said to have is compared with the file, on
// the device by work that runs when its turn comes. A life is one seed.
//
// Half of the lives are patient: at the end of a pass it waits for all that devices do, so that what happens in it does not
// depend on how busy this machine is. In the others passes and copies race. What must have happened is counted in patient
// ones.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "kernels/device/host_device.h"
#include "scheduler/planner.h"
#include "scheduler/policy/make_policy.h"
#include "scheduler/scheduler.h"
#include "scheduler/tiers/device_copier.h"
#include "scheduler/tiers/slab.h"
#include "tests/scheduler/fake_reader.h"
#include "tests/scheduler/pattern_file.h"
#include "tests/scheduler/small_model.h"
#include "tests/support/watchdog.h"

using namespace stoker;
using namespace stoker::test;

namespace {

constexpr i64 kLives = lives(2000), kPatienceSeconds = 60, kPieceTokens = 64;

// An order of a device's own: some matrices lie there from the last byte to the first.
class Backwards final : public DeviceOrder {
 public:
  explicit Backwards(const ExpertTable& table) : table_(table) {}

  bool differs(LayerId layer, size_t matrix) const override { return (static_cast<size_t>(layer.value) + matrix) % 3 != 0; }
  Status to_device_order(DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) override {
    auto& host = static_cast<HostDeviceStream&>(stream);
    i64 bytes = table_.layer(layer).base[matrix].bytes;
    host.post(HostWork([&host, from, to, bytes] { std::reverse_copy(host.real(from), host.real(from) + bytes, host.real(to)); }),
              bytes);
    return {};
  }
  Status to_file_order(DeviceStream& stream, LayerId layer, size_t matrix, DevicePtr from, DevicePtr to) override {
    return to_device_order(stream, layer, matrix, from, to);
  }

 private:
  const ExpertTable& table_;
};

// A copier that knows how many copies are under way.
class CountingCopier final : public Copier {
 public:
  explicit CountingCopier(const std::vector<DeviceCopier::Arena>& arenas) : copier_(arenas) {}

  i64 under_way() const { return under_way_; }

  i64 devices() const override { return copier_.devices(); }
  i64 arena_bytes(i64 device) const override { return copier_.arena_bytes(device); }
  i64 capacity() const override { return copier_.capacity(); }
  i64 submit(std::span<const Copy> copies) override {
    i64 taken = copier_.submit(copies);
    under_way_ += taken;
    return taken;
  }
  i64 poll(std::span<CopyDone> done) override {
    i64 ended = copier_.poll(done);
    under_way_ -= ended;
    return ended;
  }
  bool wait(i64 timeout_ns) override { return copier_.wait(timeout_ns); }
  void add_memory(std::byte* data, i64 bytes) override { copier_.add_memory(data, bytes); }
  void remove_memory(std::byte* data, i64 bytes) override { copier_.remove_memory(data, bytes); }
  std::string describe() const override { return copier_.describe(); }

 private:
  DeviceCopier copier_;
  i64 under_way_ = 0;
};

bool right(const ExpertTable& table, LayerId layer, ExpertId expert, size_t matrix, const std::byte* data) {
  Extent e = table.extent(layer, expert, static_cast<ExpertMatrix>(matrix));
  return matches_pattern(data, static_cast<u64>(e.file), e.offset, e.bytes);
}

struct Options {
  u64 seed = 1;
  SmallModel model;
  i64 passes = 16;
  i64 budget = 0;
  std::vector<i64> slots;                  // [devices] of the largest experts
  std::vector<HostDeviceOptions> devices;  // [devices]
  std::vector<bool> ordered;               // [devices]
  std::string policy;
  f64 failing_reads = 0;
  bool patient = false;
};

// What has happened, over all patient lives: a test that nothing happens in shows nothing.
struct Seen {
  i64 device_hits = 0, promotions = 0, downloads = 0, failed_exchanges = 0, lost = 0, failed_reads = 0, refused = 0;

  void operator+=(const Seen& other) {
    device_hits += other.device_hits;
    promotions += other.promotions;
    downloads += other.downloads;
    failed_exchanges += other.failed_exchanges;
    lost += other.lost;
    failed_reads += other.failed_reads;
    refused += other.refused;
  }
};

class Life {
 public:
  // Throws Error when a device has no room.
  Life(const Options& o, std::vector<std::unique_ptr<Device>>& devices)
      : options_(o), rng_(o.seed), giving_(o.seed), table_(small_table(o.model)), plan_(plan_of(o, table_)), order_(table_) {
    FakeReader::Options drive{.file_bytes = table_.file_bytes(), .seed = o.seed, .capacity = 1 + rng_.below(20),
                              .longest_ns = rng_.below(3000), .failure_rate = o.failing_reads};
    reader_ = std::make_unique<FakeReader>(drive, clock_);
    std::vector<DeviceCopier::Arena> arenas;
    for (size_t d = 0; d < devices.size(); d++) {
      devices_.push_back(std::make_unique<OnDevice>());
      devices_[d]->device = devices[d].get();
      devices_[d]->ordered = o.ordered[d];
      devices_[d]->arena = DeviceBuffer(*devices[d], plan_.device_arena_bytes(d), "experts");
      devices_[d]->compute = devices[d]->make_stream();
      arenas.push_back({.device = devices[d].get(),
                        .memory = &devices_[d]->arena,
                        .order = o.ordered[d] ? &order_ : nullptr,
                        .staging_bytes = largest_matrix()});
    }
    copier_ = std::make_unique<CountingCopier>(arenas);
    scheduler_ = std::make_unique<Scheduler>(
        table_, plan_, make_policy(o.policy, plan_, table_.experts_per_layer(), table_.top_k()), *reader_, clock_,
        SlabOptions{.piece_bytes = 128 * kKiB, .background = rng_.below(2) == 0 && !o.patient}, copier_.get());
    scheduler_->set_prefetch({rng_.below(2) == 0 ? PrefetchMode::on : PrefetchMode::off});
  }

  void live(Seen& seen) {
    for (i64 pass = 0; pass < options_.passes; pass++) {
      bool prompt = rng_.below(8) == 0;
      for (i64 l = 0; l < table_.moe_layers(); l++) {
        hint((l + 1) % table_.moe_layers(), pass / 4);
        i64 count = prompt ? 1 + rng_.below(table_.experts_per_layer()) : table_.top_k();
        seen.failed_reads += !use(l, skewed(count, pass / 4));
        settle(rng_.below(3) == 0);
        if (prompt) end_epoch([&] { scheduler_->end_piece_layer(layer(l), kPieceTokens); });
      }
      end_epoch([&] { scheduler_->end_pass(1, 1000, !prompt); });
      if (giving_.below(24) == 0) {
        const i64 before = reader_->memory_bytes(), given = scheduler_->give_up_memory(giving_.below(plan_.arena_bytes() / 3));
        if (options_.patient) CHECK(reader_->memory_bytes() == before - given);  // in others the arena may grow meanwhile
      }
    }
    settle(true);
    const SchedulerStats& s = scheduler_->stats();
    CHECK(s.hits + s.misses + s.device_hits == s.requests);
    seen.device_hits += s.device_hits;
    seen.promotions += s.promotions;
    seen.downloads += s.downloaded_bytes > 0;
    seen.failed_exchanges += s.failed_exchanges;
    scheduler_.reset();  // aborts when a slot has got lost
    CHECK(reader_->in_flight() == 0);
    CHECK(reader_->memory_bytes() == 0);
    CHECK(wrong_.load() == 0);
  }

 private:
  // What a device has been given to look at.
  struct Look {
    LayerId layer;
    ExpertId expert;
    std::array<DevicePtr, 3> at;
  };
  struct Epoch {
    i64 number = 0;
    std::unique_ptr<DeviceEvent> event;
    std::deque<Look> looks = {};
  };
  struct OnDevice {
    Device* device = nullptr;
    bool ordered = false;
    DeviceBuffer arena;
    std::deque<Epoch> epochs;  // not known to have ended
    std::unique_ptr<DeviceStream> compute;
  };

  static Plan plan_of(const Options& o, const ExpertTable& table) {
    PlanRequest request{.ram_bytes = o.budget, .ring_depth = 8, .piece_bytes = 8192};
    i64 largest = 0;
    for (const ExpertLayer& layer : table.layers()) largest = std::max(largest, vram_layout(table, layer.layer).bytes);
    for (i64 slots : o.slots) request.devices.push_back({.vram_bytes = slots * largest});
    return make_plan(table, request);
  }
  i64 largest_matrix() const {
    i64 most = 0;
    for (const ExpertLayer& layer : table_.layers())
      for (const Extent& matrix : layer.base) most = std::max(most, matrix.bytes);
    return most;
  }
  LayerId layer(i64 moe_layer) const { return table_.layers()[static_cast<size_t>(moe_layer)].layer; }

  // Small numbers are wanted more; which, moves on.
  std::vector<ExpertRequest> skewed(i64 count, i64 shift) {
    i64 n = table_.experts_per_layer();
    std::vector<ExpertRequest> requests;
    while (static_cast<i64>(requests.size()) < std::min(count, n)) {
      f64 u = rng_.uniform();
      ExpertId expert((static_cast<i64>(u * u * u * static_cast<f64>(n)) + shift) % n);
      bool fresh = std::none_of(requests.begin(), requests.end(), [&](const ExpertRequest& r) { return r.expert == expert; });
      if (fresh) requests.push_back({expert, 1, 1.f});
    }
    return requests;
  }
  void hint(i64 moe_layer, i64 shift) {
    std::vector<ExpertExpectation> expected;
    for (const ExpertRequest& r : skewed(table_.top_k(), shift)) expected.push_back({r.expert, static_cast<f32>(rng_.uniform())});
    scheduler_->hint(layer(moe_layer), expected);
  }

  // One layer of a pass. False when a read has failed.
  bool use(i64 moe_layer, const std::vector<ExpertRequest>& requests) {
    Scheduler::Lease lease = scheduler_->acquire(layer(moe_layer), requests);
    for (const DeviceExpert& e : lease.on_devices()) post(e, layer(moe_layer), requests[static_cast<size_t>(e.request)].expert);
    std::vector<ReadyExpert> ready;
    i64 computed = static_cast<i64>(lease.on_devices().size());
    while (lease.pending() > 0) {
      ready.clear();
      if (!lease.wait(ready).ok()) return false;
      for (const ReadyExpert& r : ready) {
        ExpertId expert = requests[static_cast<size_t>(r.request)].expert;
        const std::byte* matrices[] = {r.gate, r.up, r.down};
        for (size_t m = 0; m < 3; m++) wrong_ += !right(table_, layer(moe_layer), expert, m, matrices[m]);
        lease.release(r);
        computed++;
      }
    }
    CHECK(computed == static_cast<i64>(requests.size()));
    return true;
  }

  void post(const DeviceExpert& e, LayerId layer, ExpertId expert) {
    OnDevice& d = *devices_[static_cast<size_t>(e.device)];
    i64 now = scheduler_->epoch();
    if (d.epochs.empty() || d.epochs.back().number != now) d.epochs.push_back({now, d.device->make_event()});
    Look& look = d.epochs.back().looks.emplace_back(Look{layer, expert, {}});
    for (size_t m = 0; m < look.at.size(); m++) look.at[m] = d.arena.data() + e.at_device[m];
    auto& host = static_cast<HostDeviceStream&>(*d.compute);
    host.post(HostWork([this, &host, &look, ordered = d.ordered] { compare(host, look, ordered); }), 0);
  }
  // In the stream's thread.
  void compare(const HostDeviceStream& host, const Look& look, bool ordered) {
    thread_local std::vector<std::byte> straight;
    for (size_t m = 0; m < look.at.size(); m++) {
      const std::byte* data = host.real(look.at[m]);
      i64 bytes = table_.layer(look.layer).base[m].bytes;
      straight.assign(data, data + bytes);
      if (ordered && order_.differs(look.layer, m)) std::reverse(straight.begin(), straight.end());
      wrong_ += !right(table_, look.layer, look.expert, m, straight.data());
    }
  }

  // Tells the scheduler of epochs that devices have ended, of all that were given them if `wait`.
  void settle(bool wait) {
    for (size_t d = 0; d < devices_.size(); d++) {
      std::deque<Epoch>& epochs = devices_[d]->epochs;
      // The epoch under way has no record behind it yet.
      while (!epochs.empty() && epochs.front().number < scheduler_->epoch() && (wait || epochs.front().event->done())) {
        if (epochs.front().event->wait().ok())
          scheduler_->finish_epoch(static_cast<i64>(d), epochs.front().number);
        else
          scheduler_->lose_device(static_cast<i64>(d));
        epochs.pop_front();
      }
    }
  }
  template <class End>
  void end_epoch(const End& end) {
    if (options_.patient) end_copies();
    for (auto& d : devices_)
      if (!d->epochs.empty() && d->epochs.back().number == scheduler_->epoch())
        static_cast<void>(d->compute->record(*d->epochs.back().event));
    i64 ended = scheduler_->epoch();
    end();
    for (size_t d = 0; d < devices_.size(); d++)  // those that had nothing to do
      if (devices_[d]->epochs.empty()) scheduler_->finish_epoch(static_cast<i64>(d), ended);
    settle(rng_.below(3) == 0 || options_.patient);
  }
  void end_copies() {
    while (copier_->under_way() > 0) {
      copier_->wait(1'000'000);
      scheduler_->tend();
    }
  }

  Options options_;
  Rng rng_, giving_;  // the second: when memory goes back
  VirtualClock clock_;
  ExpertTable table_;
  Plan plan_;
  Backwards order_;
  std::atomic<i64> wrong_{0};  // matrices
  std::unique_ptr<FakeReader> reader_;
  std::vector<std::unique_ptr<OnDevice>> devices_;
  std::unique_ptr<CountingCopier> copier_;
  std::unique_ptr<Scheduler> scheduler_;
};

Options random_options(u64 seed) {
  constexpr const char* kPolicies[] = {"auto", "lru", "ema", "s3fifo", "slru"};
  Rng rng(seed);
  Options o;
  o.seed = seed;
  o.patient = seed / 4 % 2 == 0;  // of both kinds of file
  o.model = {.layers = 1 + rng.below(3), .experts = 6 + rng.below(10), .top_k = 1 + rng.below(3), .seed = seed};
  o.model.sizes = rng.below(3) == 0 ? 2 : 1;
  o.model.packed = seed % 4 == 0;
  ExpertTable table = small_table(o.model);
  i64 least = smallest_budget(table, 4096), full = full_budget(table, 4096);
  o.budget = rng.below(4) == 0 ? least : least + (full - least) / 4 + rng.below((full - least) / 2 + 1);
  o.policy = kPolicies[rng.below(5)];
  o.failing_reads = rng.below(4) == 0 ? .01 : 0;
  for (i64 d = 1 + rng.below(3); d > 0; d--) {
    o.slots.push_back(rng.below(13));
    o.ordered.push_back(rng.below(2) == 0);
    HostDeviceOptions& device = o.devices.emplace_back();
    device.vram_bytes = kMiB;  // 13 of the largest experts, and staging
    device.delay_us_max = rng.below(3) == 0 ? 0 : rng.below(40);
    device.seed = seed * 10 + static_cast<u64>(d);
    device.only_pinned = true;
    if (rng.below(3) == 0) device.lose_at = 1 + rng.below(40);
    if (rng.below(4) == 0) device.fail_copy = 1 + rng.below(60);
    if (rng.below(12) == 0) device.fail_allocation = 1 + rng.below(3);
  }
  return o;
}

Seen live(const Options& o) {
  Seen seen;
  std::vector<std::unique_ptr<Device>> devices;
  for (const HostDeviceOptions& device : o.devices) devices.push_back(open_host_device(device, "host:0"));
  try {
    Life(o, devices).live(seen);
  } catch (const Error& e) {
    CHECK_MESSAGE(std::string(e.what()).find("host:0: no ") == 0, e.what());
    seen.refused++;
  }
  for (const auto& device : devices) {
    seen.lost += !device->status().ok();
    CHECK(device->properties().free_bytes == device->properties().total_bytes);
  }
  return seen;
}

}  // namespace

TEST_CASE("thousands of lives with late, failing and lost devices: no wrong byte, no deadlock, no leak") {
  Watchdog watchdog(kPatienceSeconds);
  Seen seen;
  for (u64 seed = 1; seed <= static_cast<u64>(kLives); seed++) {
    CAPTURE(seed);
    watchdog.begin(seed);
    Options o = random_options(seed);
    Seen now = live(o);
    if (o.patient) seen += now;
  }
  CHECK(seen.device_hits > kLives);
  CHECK(seen.promotions > kLives);
  CHECK(seen.downloads > kLives / 20);
  CHECK(seen.failed_exchanges > kLives / 10);
  CHECK(seen.lost > kLives / 20);
  CHECK(seen.failed_reads > 0);
  CHECK(seen.refused > 0);
}
