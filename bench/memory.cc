// bench/memory: how fast the cores read memory, by several loops over huge pages. The best is the roof that the other
// benches compare with.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "scheduler/memory_probe.h"

using namespace stoker;

int main(int argc, char** argv) {
  CLI::App app{"Reads memory with all cores and prints GB/s (1e9 bytes) of several loops."};
  MemoryProbe probe;
  u64 bytes = static_cast<u64>(probe.bytes);
  bool json = false;
  app.add_option("--bytes", bytes, "bytes per round, such as 1GiB; far more than the caches hold")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  app.add_option("--threads", probe.threads, "0: one per physical core")->check(CLI::Range(0, 1024));
  app.add_option("--rounds", probe.rounds, "of each loop; the best counts")->check(CLI::Range(1, 10000))->capture_default_str();
  app.add_flag("--json", json, "print JSON");
  CLI11_PARSE(app, argc, argv);
  probe.bytes = static_cast<i64>(bytes);
  try {
    MemoryMeasure m = measure_memory(probe);
    if (json) {
      nlohmann::ordered_json loops = nlohmann::ordered_json::object();
      for (const auto& loop : m.loops) loops[loop.name] = loop.gb_per_second;
      nlohmann::ordered_json all = {{"threads", m.threads}, {"best_gb_per_second", m.best().gb_per_second}, {"loops", loops}};
      fmt::print("{}\n", all.dump(2));
      return 0;
    }
    for (const auto& loop : m.loops) fmt::print("{:<28}{:>8.2f} GB/s\n", loop.name, loop.gb_per_second);
    fmt::print("best, {} threads{:>{}}{:>8.2f} GB/s\n", m.threads, "", 13, m.best().gb_per_second);
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench/memory: {}\n", e.what());
    return 1;
  }
  return 0;
}
