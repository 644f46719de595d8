// The whole path on real files and real time: io_uring and pread, the arena growing in its thread, every
// budget.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/rng.h"
#include "scheduler/machine.h"
#include "scheduler/planner.h"
#include "scheduler/policy/lru_cache.h"
#include "scheduler/scheduler.h"
#include "scheduler/tiers/disk.h"
#include "scheduler/tiers/open_reader.h"
#include "scheduler/tiers/slab.h"
#include "tests/scheduler/pattern_file.h"
#include "tests/scheduler/small_model.h"

using namespace stoker;
using namespace stoker::test;

namespace {

const SmallModel kModel{.layers = 3, .experts = 32, .top_k = 4};
const SmallModel kPacked{.layers = 3, .experts = 32, .top_k = 4, .packed = true};

struct Rig {
  Rig(const ExpertTable& t, const std::vector<std::string>& paths, IoPath io, i64 budget) : table(t) {
    reader = open_reader(paths, {.path = io, .depth = 8, .capacity = 32});
    plan = make_plan(table, {.ram_bytes = budget,
                             .alignment = plan_alignment(*reader, table),
                             .ring_depth = 8,
                             .piece_bytes = 8192});
    scheduler = std::make_unique<Scheduler>(
        table, plan, std::make_unique<LruCache>(plan, table.experts_per_layer(), table.top_k()), *reader,
        steady_clock(), SlabOptions{.fault_in = fault_in_if_available, .piece_bytes = 128 * kKiB});
  }
  // Uses the experts of one layer; the first failure, if any.
  Status use(i64 moe_layer, const std::vector<ExpertRequest>& requests) {
    LayerId layer = table.layers()[static_cast<size_t>(moe_layer)].layer;
    auto lease = scheduler->acquire(layer, requests);
    std::vector<ReadyExpert> ready;
    while (lease.pending() > 0) {
      ready.clear();
      if (Status s = lease.wait(ready); !s.ok()) return s;
      for (const ReadyExpert& r : ready) {
        const std::byte* data[] = {r.gate, r.up, r.down};
        for (i64 m = 0; m < kExpertMatrices; m++) {
          ExpertId expert = requests[static_cast<size_t>(r.request)].expert;
          Extent e = table.extent(layer, expert, static_cast<ExpertMatrix>(m));
          CHECK(matches_pattern(data[m], static_cast<u64>(e.file), e.offset, e.bytes));
        }
        lease.release(r);
      }
    }
    return {};
  }

  const ExpertTable& table;
  Plan plan;
  std::unique_ptr<Reader> reader;
  std::unique_ptr<Scheduler> scheduler;
};

std::vector<IoPath> io_paths() {
  std::vector<IoPath> paths{IoPath::pread};
  if (Disk::unavailable() == 0) paths.push_back(IoPath::uring);
  return paths;
}

std::vector<ExpertRequest> some_experts(Rng& rng, i64 count) {
  std::vector<ExpertRequest> requests;
  i64 first = rng.below(kModel.experts), step = 1 + 2 * rng.below(4);  // odd: no expert twice
  for (i64 i = 0; i < count; i++) requests.push_back({ExpertId((first + i * step) % kModel.experts)});
  return requests;
}

}  // namespace

TEST_CASE("experts stream from real files with the right bytes, through io_uring and through pread") {
  for (const SmallModel& model : {kModel, kPacked}) {
    ExpertTable table = small_table(model);
    // The table's last slice ends where its file ends, which is no multiple of any alignment.
    PatternFile a(0, table.file_bytes()[0]), b(1, table.file_bytes()[1]);
    i64 least = smallest_budget(table, 4096), full = full_budget(table, 4096);
    for (IoPath io : io_paths()) {
      for (i64 budget : {least, (least + full) / 2, full}) {
        Rig rig(table, {a.path(), b.path()}, io, budget);
        Rng rng(9);
        for (int token = 0; token < 30; token++)
          for (i64 l = 0; l < kModel.layers; l++)
            CHECK(rig.use(l, some_experts(rng, token % 10 == 9 ? 32 : 4)).ok());
        const SchedulerStats& s = rig.scheduler->stats();
        CHECK(s.misses > 0);
        CHECK(s.bytes_read > 0);
        CHECK(s.disk_busy_ns > 0);
      }
    }
  }
}

TEST_CASE("a damaged byte on disk is found when its expert is read, wherever it is") {
  ExpertTable table = small_table(kPacked);
  for (IoPath io : io_paths())
    for (bool first : {true, false}) {
      PatternFile a(0, table.file_bytes()[0]), b(1, table.file_bytes()[1]);
      LayerId layer = table.layers()[1].layer;
      Extent lost = table.extent(layer, ExpertId(9), first ? ExpertMatrix::gate : ExpertMatrix::down);
      std::string path = lost.file == 0 ? a.path() : b.path();
      {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(first ? lost.offset : lost.offset + lost.bytes - 1);
        char byte = static_cast<char>(file.get());
        file.seekp(first ? lost.offset : lost.offset + lost.bytes - 1);
        file.put(static_cast<char>(byte ^ 0x10));
      }
      Rig rig(table, {a.path(), b.path()}, io, full_budget(table, 4096));
      Status status = rig.scheduler->preload(nullptr, nullptr);
      INFO(status.message());
      CHECK(status.message().find("layer 2, expert 9: ") == 0);
      CHECK(status.message().find(path) != std::string::npos);
      CHECK(!rig.use(1, {{ExpertId(9)}}).ok());
      CHECK(rig.use(1, {{ExpertId(8)}, {ExpertId(10)}, {ExpertId(11)}}).ok());
    }
}

TEST_CASE("a model that fits is read once, before the first token") {
  ExpertTable table = small_table(kModel);
  PatternFile a(0, table.file_bytes()[0]), b(1, table.file_bytes()[1]);
  for (IoPath io : io_paths()) {
    Rig rig(table, {a.path(), b.path()}, io, full_budget(table, 4096));
    CHECK(rig.scheduler->preload(nullptr, nullptr).ok());
    Rng rng(9);
    for (i64 l = 0; l < kModel.layers; l++) CHECK(rig.use(l, some_experts(rng, 32)).ok());
    CHECK(rig.scheduler->stats().misses == 0);
  }
}

TEST_CASE("a file that shrinks under way ends in a message, and experts that are still there can be had") {
  ExpertTable table = small_table(kModel);
  for (IoPath io : io_paths()) {
    PatternFile a(0, table.file_bytes()[0]), b(1, table.file_bytes()[1]);
    const PatternFile* files[] = {&a, &b};
    LayerId layer = table.layers()[2].layer;
    Extent lost = table.extent(layer, ExpertId(31), ExpertMatrix::gate);
    Rig rig(table, {a.path(), b.path()}, io, smallest_budget(table, 4096));
    CHECK(rig.use(2, {{ExpertId(31)}}).ok());
    for (i64 e = 0; e < 16; e++) CHECK(rig.use(2, {{ExpertId(e)}}).ok());  // evicts it
    CHECK(truncate(files[lost.file]->path().c_str(), lost.offset + 100) == 0);
    Status status = rig.use(2, {{ExpertId(31)}});
    INFO(status.message());
    CHECK(!status.ok());
    CHECK(status.message().find("expert 31 in layer 3") != std::string::npos);
    CHECK(status.message().find(files[lost.file]->path()) != std::string::npos);
    CHECK(status.message().find("Input/output error") != std::string::npos);
    // Earlier layers lie before the end of the file.
    for (i64 l : {0, 1}) CHECK(rig.use(l, {{ExpertId(7)}, {ExpertId(9)}, {ExpertId(2)}, {ExpertId(5)}}).ok());
  }
}
