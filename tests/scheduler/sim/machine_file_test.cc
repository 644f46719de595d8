// Machine files: what is read, and what each mistake is told.
#include "scheduler/sim/machine_file.h"

#include <doctest/doctest.h>

#include "kernels/base/error.h"

namespace stoker {

namespace {

const std::string kGood = R"(
name = "box"
ram_gib = 64
layer_overhead_us = 5
[dram]
gb_per_second = 60
[ssd]
gb_per_second = 6.5
latency_us = 80
[kernels]
default = 100
IQ1_S = 20
[[gpu]]
name = "A"
vram_gib = 24
gb_per_second = 800
link_gb_per_second = 13
)";

std::string error_of(const std::string& text) {
  try {
    parse_machine(text, "box.toml");
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

// kGood with one piece of text replaced.
std::string error_with(const std::string& from, const std::string& to) {
  std::string text = kGood;
  size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return error_of(text.replace(at, from.size(), to));
}

bool says(const std::string& text, const std::string& part) {
  INFO(text);
  bool found = text.find("box.toml") == 0 && text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

}  // namespace

TEST_CASE("a machine file is read") {
  SimMachine m = parse_machine(kGood, "box.toml");
  CHECK(m.name == "box");
  CHECK(m.ram_bytes == 64 * kGiB);
  CHECK(m.dram_gb_per_second == 60);
  CHECK(m.ssd_gb_per_second == 6.5);
  CHECK(m.ssd_latency_us == 80);
  CHECK(m.layer_overhead_us == 5);
  CHECK(m.kernel_speed(BlockType::IQ1_S) == 20);
  CHECK(m.kernel_speed(BlockType::Q4_K) == 100);
  CHECK(m.compute_speed(BlockType::Q4_K) == 60);
  REQUIRE(m.gpus.size() == 1);
  CHECK(m.gpus[0].vram_bytes == 24 * kGiB);
  CHECK(m.gpus[0].link_gb_per_second == 13);
}

TEST_CASE("GPUs and overhead may be left out") {
  std::string text = kGood.substr(0, kGood.find("[[gpu]]"));
  text.erase(text.find("layer_overhead_us = 5"), 21);
  SimMachine m = parse_machine(text, "box.toml");
  CHECK(m.gpus.empty());
  CHECK(m.layer_overhead_us == 0);
  CHECK(m.wake_us == 0);
  CHECK(m.attention_gflops == 0);
}

TEST_CASE("a machine file that is written is read as it was") {
  SimMachine m = parse_machine(kGood, "box.toml");
  m.name = "a \"quoted\" \\ name";
  m.streamed_gb_per_second[static_cast<size_t>(BlockType::Q4_K)] = 12.5;
  m.ssd_speeds = {{256 * kKiB, 8, 5}, {kMiB, 64, 6.5}};
  m.wake_us = 12.5;
  m.attention_gflops = 250;
  std::string text = machine_toml(m, "first line\nsecond line");
  CHECK(text.find("# first line\n# second line\n") == 0);
  SimMachine again = parse_machine(text, "box.toml");
  CHECK(again.name == m.name);
  CHECK(again.ram_bytes == m.ram_bytes);
  CHECK(again.layer_overhead_us == m.layer_overhead_us);
  CHECK(again.wake_us == 12.5);
  CHECK(again.attention_gflops == 250);
  CHECK(again.dram_gb_per_second == m.dram_gb_per_second);
  CHECK(again.ssd_gb_per_second == m.ssd_gb_per_second);
  CHECK(again.ssd_latency_us == m.ssd_latency_us);
  for (const BlockTypeInfo& type : all_block_types()) CHECK(again.kernel_speed(type.type) == m.kernel_speed(type.type));
  for (const BlockTypeInfo& type : all_block_types()) CHECK(again.streamed_speed(type.type) == m.streamed_speed(type.type));
  REQUIRE(again.ssd_speeds.size() == 2);
  CHECK(again.ssd_speed(256 * kKiB, 8) == 5);
  CHECK(again.ssd_speed(kMiB, 128) == 6.5);
  CHECK(m.compute_speed(BlockType::Q4_K) == 12.5);
  REQUIRE(again.gpus.size() == 1);
  CHECK(again.gpus[0].name == "A");
  CHECK(again.gpus[0].vram_bytes == m.gpus[0].vram_bytes);
  CHECK(again.gpus[0].link_gb_per_second == m.gpus[0].link_gb_per_second);
}

TEST_CASE("mistakes in machine files are named") {
  says(error_with("ram_gib = 64", "ram_gib = "), "line 3: not TOML");
  says(error_with("ram_gib = 64", ""), "ram_gib is missing");
  says(error_with("ram_gib = 64", "ram_gib = \"64\""), "ram_gib must be a number");
  says(error_with("name = \"box\"", "name = 3"), "name must be a text");
  says(error_with("gb_per_second = 60", "gb_per_second = 0"), "dram.gb_per_second = 0 must be more than 0");
  says(error_with("gb_per_second = 60", "gb_per_second = nan"), "dram.gb_per_second");
  says(error_with("gb_per_second = 60", "gb_per_second = 1e12"), "dram.gb_per_second");
  says(error_with("latency_us = 80", "latency_us = -1"), "ssd.latency_us = -1 must be 0 or more");
  says(error_with("latency_us = 80", "latency = 80"), "ssd.latency_us is missing");
  says(error_with("IQ1_S = 20", "IQ9 = 20"), "kernels.IQ9 is no key of a machine; known here are default, ");
  says(error_with("default = 100", ""), "kernels.default is missing");
  says(error_with("[ssd]", "[disk]"), "ssd is missing");
  says(error_with("[[gpu]]", "[gpu]"), "write [[gpu]]");
  says(error_with("vram_gib = 24", "vram_gib = 24\nvram_gb = 24"), "gpu.vram_gb is no key");
  says(error_with("gb_per_second = 6.5", "gb_per_second = 31"), "ssd.gb_per_second = 31 must be at most half");
  says(error_with("latency_us = 80", "latency_us = 80\n[[ssd.measured]]\npiece_kib = 4\ndepth = 0.5\ngb_per_second = 1"),
       "[ssd.measured] piece_kib and depth");
  says(error_with("latency_us = 80", "latency_us = 80\n[[ssd.measured]]\npiece_kib = 4\ndepth = 2\ngb_per_second = 7"),
       "ssd.measured has 7 GB/s");
  says(error_with("[[gpu]]", "[streamed]\nIQ9 = 1\n[[gpu]]"), "streamed.IQ9 is no key");
  says(error_of(""), "name is missing");
  CHECK_THROWS_AS(read_machine_file("/no/such/box.toml"), Error);
}

}  // namespace stoker
