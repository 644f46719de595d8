#include "tools/tune/machine_measure.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "runtime/interrupted.h"
#include "runtime/kernel_probe.h"
#include "runtime/layer_probe.h"
#include "scheduler/machine.h"
#include "scheduler/memory_probe.h"
#include "scheduler/model_file/output_file.h"
#include "scheduler/probe.h"
#include "scheduler/sim/machine_file.h"
#include "tools/interrupt.h"
#include "tools/terminal.h"
#include "tools/tune/layer_measure.h"

namespace stoker {

namespace {

constexpr i64 kScratchBytes = 256 * kMiB;
constexpr std::array<i64, 3> kPieces = {256 * kKiB, kMiB, 4 * kMiB};
constexpr std::array<i64, 4> kDepths = {8, 32, 64, 128};
constexpr i64 kLatencyBytes = 4096;
constexpr i64 kLeastMemoryBytes = 512 * kMiB;
constexpr i64 kCachesInMemory = 6;  // a server's shared cache has hundreds of megabytes, and holds its part of what is read in turns
// Drive and memory are measured in turns, all of them in each round, and their means count: neighbours take from all alike.
constexpr i64 kRounds = 2;
constexpr f64 kStreamedSeconds = .3;  // of each format and round
constexpr i64 kSteps = kRounds * (static_cast<i64>(kPieces.size() * kDepths.size()) + 2) + 3;

class Steps {
 public:
  void next(std::string_view what) {
    if (interrupt_flag().load()) throw Interrupted();
    show_progress(what, ++done_, kSteps, ProgressUnit::steps);
  }

 private:
  i64 done_ = 0;
};

// The whole of the machine, unless this process may have less of it.
i64 ram_bytes() {
  Machine machine = read_machine();
  bool limited = machine.limited_by != "memory of the machine";
  return limited ? machine.available_bytes : machine.total_ram_bytes;
}

// What memory and kernels are measured with: mostly out of the caches, as a model's weights are.
i64 memory_bytes() {
  i64 wanted = std::max<i64>(kLeastMemoryBytes, kCachesInMemory * std::max<i64>(0, ::sysconf(_SC_LEVEL3_CACHE_SIZE)));
  return std::min(wanted, std::max<i64>(64 * kMiB, read_machine().available_bytes / 4));
}

// Measurements of one kind, taken at several times.
struct DiskSum {
  i64 bytes = 0, request_bytes = 1;
  f64 seconds = 0;

  void add(const DiskMeasure& m) {
    bytes += m.bytes;
    request_bytes = m.request_bytes;
    seconds += m.seconds;
  }
  f64 gb_per_second() const { return static_cast<f64>(bytes) / seconds * 1e-9; }
  f64 us_per_request() const { return 1e6 * seconds * static_cast<f64>(request_bytes) / static_cast<f64>(std::max(bytes, request_bytes)); }
};

// What an expert that is read alone takes longer than its bytes do at full speed: waking the reader, the way of the first and of
// the last piece. At least the time of a single small read.
f64 latency_us(const DiskSum& small, const DiskSum& alone, const std::vector<DiskSpeed>& speeds) {
  DiskProbe full;  // the engine's reads
  for (const DiskSpeed& d : speeds) {
    if (d.piece_bytes != full.piece_bytes || d.depth != full.depth) continue;
    f64 bytes_us = static_cast<f64>(alone.request_bytes) / d.gb_per_second * 1e-3;
    return std::max(small.us_per_request(), alone.us_per_request() - bytes_us);
  }
  return small.us_per_request();
}

class DriveMeasure {
 public:
  explicit DriveMeasure(const MeasureRequest& r) : file_(r.file), seconds_(r.seconds / kRounds) {
    std::error_code error;
    i64 bytes = static_cast<i64>(std::filesystem::file_size(r.file, error));
    if (error) fail("{}: cannot be read: {}", r.file, error.message());
    if (bytes < kMiB) fail("{}: too small to measure the disk with: it must have a megabyte", r.file);
    request_bytes_ = std::clamp<i64>(r.request_bytes > 0 ? r.request_bytes : 8 * kMiB, kLatencyBytes, bytes / 2);
  }

  void run_round(u64 seed, Steps& steps) {
    DiskProbe probe{.path = file_, .request_bytes = request_bytes_, .seconds = seconds_, .seed = seed};
    for (size_t p = 0; p < kPieces.size(); p++)
      for (size_t d = 0; d < kDepths.size(); d++) {
        steps.next("disk");
        probe.piece_bytes = kPieces[p];
        probe.depth = kDepths[d];
        DiskMeasure speed = measure_disk(probe);
        speeds_[p][d].add(speed);
        how_ = speed.how;
      }
    steps.next("latency");
    alone_.add(measure_disk({.path = file_, .request_bytes = request_bytes_, .seconds = seconds_, .seed = seed, .one_at_a_time = true}));
    small_.add(measure_disk({.path = file_, .request_bytes = kLatencyBytes, .piece_bytes = kLatencyBytes, .depth = 1,
                             .seconds = seconds_ / 2, .seed = seed}));
  }

  void write(MachineMeasure& m) const {
    for (size_t p = 0; p < kPieces.size(); p++)
      for (size_t d = 0; d < kDepths.size(); d++) m.disk.push_back({kPieces[p], kDepths[d], speeds_[p][d].gb_per_second()});
    m.disk_how = how_;
    m.machine.ssd_latency_us = latency_us(small_, alone_, m.disk);
    f64 most = .499 * m.machine.dram_gb_per_second;
    for (const DiskSpeed& d : m.disk) {
      f64 speed = std::min(d.gb_per_second, most);
      m.machine.ssd_gb_per_second = std::max(m.machine.ssd_gb_per_second, speed);
      m.machine.ssd_speeds.push_back({d.piece_bytes, d.depth, speed});
      m.disk_capped |= speed < d.gb_per_second;
    }
  }

 private:
  std::string file_, how_;
  f64 seconds_;
  i64 request_bytes_ = 0;
  DiskSum speeds_[kPieces.size()][kDepths.size()], small_, alone_;
};

// Means over the rounds, of time per byte.
class StreamedMeasure {
 public:
  void run_round(const MeasureRequest& r, i64 bytes, Steps& steps) {
    steps.next("kernels and memory");
    KernelSpeeds speeds =
        measure_kernels({.threads = r.threads, .seconds = kStreamedSeconds, .bytes = bytes, .formats = r.formats});
    for (size_t i = 0; i < speeds.size(); i++)
      if (speeds[i] > 0) ns_per_byte_[i] += 1 / speeds[i];
    rounds_++;
  }
  void write(SimMachine& m) const {
    for (size_t i = 0; i < ns_per_byte_.size(); i++) m.streamed_gb_per_second[i] = ns_per_byte_[i] > 0 ? rounds_ / ns_per_byte_[i] : 0;
  }

 private:
  KernelSpeeds ns_per_byte_{};  // sums
  f64 rounds_ = 0;
};

}  // namespace

const DiskSpeed& MachineMeasure::best_disk() const {
  f64 most = 0;
  for (const DiskSpeed& d : disk) most = std::max(most, d.gb_per_second);
  const DiskSpeed* best = nullptr;
  for (const DiskSpeed& d : disk) {
    if (d.gb_per_second < .98 * most) continue;
    if (best == nullptr || d.depth * d.piece_bytes < best->depth * best->piece_bytes) best = &d;
  }
  return *best;
}

std::string machine_name() {
  std::string cpu = "CPU";
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) {
      cpu = line.substr(std::min(line.size(), line.find(':') + 2));
      break;
    }
  return fmt::format("{}, {} cores", cpu, read_machine().physical_cores);
}

MachineMeasure measure_machine(const MeasureRequest& r) {
  MachineMeasure m;
  Steps steps;
  DriveMeasure drive(r);
  StreamedMeasure streamed;
  i64 bytes = memory_bytes();
  for (i64 round = 0; round < kRounds; round++) {
    drive.run_round(static_cast<u64>(round) + 1, steps);
    if (round == 0 || !r.formats.empty()) streamed.run_round(r, bytes, steps);  // all formats take too long for more
  }
  steps.next("memory");
  MemoryMeasure memory = measure_memory({.bytes = bytes, .threads = r.threads, .rounds = 4});
  m.threads = memory.threads;
  m.machine.dram_gb_per_second = memory.best().gb_per_second;
  steps.next("kernels");
  m.machine.kernel_gb_per_second = measure_kernels({.threads = r.threads});
  steps.next("layers");
  m.machine.attention_gflops = measure_attention({.threads = r.threads});
  m.machine.wake_us = measure_wake_us({.threads = r.threads});
  m.machine.layer_overhead_us = measure_layer_overhead_us(r.threads, m.machine.kernel_speed(BlockType::Q4_K));
  clear_progress();
  drive.write(m);
  streamed.write(m.machine);
  m.machine.ram_bytes = ram_bytes();
  m.machine.name = fmt::format("{}, {}", machine_name(), human_bytes(m.machine.ram_bytes));
  return m;
}

std::string measure_text(const MachineMeasure& m) {
  std::string text = fmt::format("{}\n\ndisk, GB/s ({})\n  bytes per read", m.machine.name, m.disk_how);
  for (i64 depth : kDepths) text += fmt::format("{:>8} deep", depth);
  for (size_t i = 0; i < m.disk.size(); i++) {
    if (i % kDepths.size() == 0) text += fmt::format("\n  {:>14}", human_bytes(m.disk[i].piece_bytes));
    text += fmt::format("{:>13.2f}", m.disk[i].gb_per_second);
  }
  text += fmt::format("\n  latency {:.0f} us (of an expert alone, beside its bytes)\n", m.machine.ssd_latency_us);
  if (m.disk_capped) text += "  taken as half of the memory's speed, the most that the simulator knows\n";
  text += fmt::format("memory {:.2f} GB/s, {} cores reading\n", m.machine.dram_gb_per_second, m.threads);
  text += fmt::format("layers {:.0f} us each beside their weights, {:.0f} us more after a wait; attention {:.0f} GFLOP/s\n",
                      m.machine.layer_overhead_us, m.machine.wake_us, m.machine.attention_gflops);
  text += "kernels, GB/s of weights in the cores' own caches / in memory\n";
  i64 column = 0;
  for (const BlockTypeInfo& type : all_block_types())
    text += fmt::format("  {:<8}{:>6.1f} /{:>5}{}", type.name, m.machine.kernel_speed(type.type),
                        m.machine.streamed_speed(type.type) > 0 ? fmt::format("{:.1f}", m.machine.streamed_speed(type.type)) : "-",
                        ++column % 4 == 0 ? "\n" : "");
  return text + (column % 4 == 0 ? "" : "\n");
}

std::string measure_toml(const MachineMeasure& m) {
  return machine_toml(m.machine,
                      "Measured by `stoker tune --measure`; for `stoker simulate --machine FILE` and `stoker plan`.\n"
                      "1 GB/s is 1e9 bytes per second. [kernels]: weights in each format, out of the cores' own caches; "
                      "[streamed]: out of memory.");
}

ScratchFile::ScratchFile(const std::string& folder) {
  path_ = (std::filesystem::path(folder.empty() ? "." : folder) / fmt::format(".stoker-measure-{}", ::getpid())).string();
  OutputFile file(path_);
  Rng rng(1);
  std::vector<u64> part(static_cast<size_t>(4 * kMiB) / sizeof(u64));
  for (i64 done = 0; done < kScratchBytes; done += 4 * kMiB) {
    if (interrupt_flag().load()) throw Interrupted();
    for (u64& word : part) word = rng.next();
    file.write(std::as_bytes(std::span(part)));
    show_progress("scratch file", done, kScratchBytes, ProgressUnit::bytes);
  }
  file.finish(/*durable=*/true);
  file.commit();
}

ScratchFile::~ScratchFile() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

}  // namespace stoker
