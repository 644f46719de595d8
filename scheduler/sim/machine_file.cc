#include "scheduler/sim/machine_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>
#include <toml++/toml.h>
#include <utility>
#include <vector>

#include "kernels/base/error.h"

namespace stoker {

namespace {

constexpr f64 kMost = 1e6;  // of any number in a machine file: sums of bytes stay far from overflowing

// One table of the file. Every key must be asked for: what is left over is a mistake.
class Section {
 public:
  Section(const toml::table& table, std::string file, std::string name)
      : table_(table), file_(std::move(file)), name_(std::move(name)) {}

  f64 number(const char* key, bool may_be_zero = false) {
    const toml::node& node = required(key);
    if (!node.is_number()) fail("{}: {} must be a number", file_, full(key));
    f64 value = *node.value<f64>();
    bool fits = std::isfinite(value) && value <= kMost && (may_be_zero ? value >= 0 : value > 0);
    if (!fits)
      fail("{}: {} = {} must be {} and at most {:.0e}", file_, full(key), value,
           may_be_zero ? "0 or more" : "more than 0", kMost);
    return value;
  }
  f64 number_or(const char* key, f64 otherwise, bool may_be_zero = false) {
    return table_.contains(key) ? number(key, may_be_zero) : (known_.emplace_back(key), otherwise);
  }
  std::string text(const char* key) {
    const toml::node& node = required(key);
    if (!node.is_string()) fail("{}: {} must be a text in quotes", file_, full(key));
    return *node.value<std::string>();
  }
  Section section(const char* key) {
    const toml::node& node = required(key);
    if (!node.is_table()) fail("{}: [{}] must be a table", file_, full(key));
    return Section(*node.as_table(), file_, full(key));
  }
  std::optional<Section> section_or_none(const char* key) {
    if (table_.contains(key)) return section(key);
    known_.emplace_back(key);
    return std::nullopt;
  }
  std::vector<Section> sections_or_none(const char* key) {
    std::vector<Section> all;
    if (!table_.contains(key)) return known_.emplace_back(key), all;
    const toml::array* array = required(key).as_array();
    if (array == nullptr || !array->is_homogeneous<toml::table>())
      fail("{}: write [[{}]], once for each of them", file_, full(key));
    for (const toml::node& node : *array) all.emplace_back(*node.as_table(), file_, full(key));
    return all;
  }
  [[noreturn]] void refuse(std::string_view why) const { fail("{}: [{}] {}", file_, name_, why); }
  void end() const {
    for (const auto& [key, node] : table_) {
      std::string name(key.str());
      if (std::find(known_.begin(), known_.end(), name) == known_.end())
        fail("{}: {} is no key of a machine; known here are {}", file_, full(name), fmt::join(known_, ", "));
    }
  }

 private:
  std::string full(const std::string& key) const { return name_.empty() ? key : name_ + "." + key; }
  const toml::node& required(const char* key) {
    known_.emplace_back(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) fail("{}: {} is missing", file_, full(key));
    return *node;
  }

  const toml::table& table_;
  std::string file_, name_;
  std::vector<std::string> known_;
};

i64 bytes_of_gib(f64 gib) { return static_cast<i64>(gib * static_cast<f64>(kGiB)); }

void read_kernels(Section kernels, SimMachine& machine) {
  machine.kernel_gb_per_second.fill(kernels.number("default"));
  for (const BlockTypeInfo& type : all_block_types()) {
    f64& speed = machine.kernel_gb_per_second[static_cast<size_t>(type.type)];
    speed = kernels.number_or(std::string(type.name).c_str(), speed);
  }
  kernels.end();
}

void read_streamed(Section streamed, SimMachine& machine) {
  for (const BlockTypeInfo& type : all_block_types())
    machine.streamed_gb_per_second[static_cast<size_t>(type.type)] = streamed.number_or(std::string(type.name).c_str(), 0);
  streamed.end();
}

SimSsdSpeed read_ssd_speed(Section speed) {
  SimSsdSpeed s{.piece_bytes = static_cast<i64>(speed.number("piece_kib") * static_cast<f64>(kKiB)),
                .depth = static_cast<i64>(speed.number("depth")),
                .gb_per_second = speed.number("gb_per_second")};
  if (s.piece_bytes < 1 || s.depth < 1) speed.refuse("piece_kib and depth must be 1 at least");
  speed.end();
  return s;
}

SimGpu read_gpu(Section gpu) {
  SimGpu g{.name = gpu.text("name"),
           .vram_bytes = bytes_of_gib(gpu.number("vram_gib")),
           .gb_per_second = gpu.number("gb_per_second"),
           .link_gb_per_second = gpu.number("link_gb_per_second"),
           .expert_gb_per_second = 0};
  g.expert_gb_per_second = gpu.number_or("expert_gb_per_second", g.gb_per_second);
  g.attention_tflops = gpu.number_or("attention_tflops", 0, true);
  gpu.end();
  return g;
}

void check(const SimMachine& m, const std::string& file) {
  // With more, the drive would be slowed down by the memory, which the simulator does not model.
  if (m.ssd_gb_per_second > m.dram_gb_per_second / 2)
    fail("{}: ssd.gb_per_second = {} must be at most half of dram.gb_per_second = {}", file, m.ssd_gb_per_second,
         m.dram_gb_per_second);
  for (const SimSsdSpeed& s : m.ssd_speeds)
    if (s.gb_per_second > m.ssd_gb_per_second)
      fail("{}: ssd.measured has {} GB/s, more than ssd.gb_per_second = {}", file, s.gb_per_second, m.ssd_gb_per_second);
}

// As TOML wants it: a basic string.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<u8>(c) < ' ' ? ' ' : c;
  }
  return out + '"';
}

std::string kernels_toml(const SimMachine& m) {
  f64 slowest = kMost;
  for (const BlockTypeInfo& type : all_block_types()) slowest = std::min(slowest, m.kernel_speed(type.type));
  std::string text = fmt::format("\n[kernels]\ndefault = {:.4g}\n", slowest);
  for (const BlockTypeInfo& type : all_block_types())
    if (m.kernel_speed(type.type) > slowest) text += fmt::format("{} = {:.4g}\n", type.name, m.kernel_speed(type.type));
  bool streamed = false;
  for (const BlockTypeInfo& type : all_block_types()) {
    if (m.streamed_speed(type.type) <= 0) continue;
    if (!std::exchange(streamed, true)) text += "\n[streamed]\n";
    text += fmt::format("{} = {:.4g}\n", type.name, m.streamed_speed(type.type));
  }
  return text;
}

}  // namespace

std::string machine_toml(const SimMachine& m, std::string_view about) {
  std::string text;
  for (size_t at = 0; at < about.size();) {
    size_t end = std::min(about.find('\n', at), about.size());
    text += fmt::format("# {}\n", about.substr(at, end - at));
    at = end + 1;
  }
  auto gib = [](i64 bytes) { return static_cast<f64>(bytes) / static_cast<f64>(kGiB); };
  text += fmt::format("name = {}\nram_gib = {:.4g}\nlayer_overhead_us = {:.4g}\nwake_us = {:.4g}\nattention_gflops = {:.4g}\n",
                      quoted(m.name), gib(m.ram_bytes), m.layer_overhead_us, m.wake_us, m.attention_gflops);
  text += fmt::format("\n[dram]\ngb_per_second = {:.4g}\n", m.dram_gb_per_second);
  text += fmt::format("\n[ssd]\ngb_per_second = {:.4g}\nlatency_us = {:.4g}\n", m.ssd_gb_per_second, m.ssd_latency_us);
  for (const SimSsdSpeed& s : m.ssd_speeds)
    text += fmt::format("\n[[ssd.measured]]\npiece_kib = {:.4g}\ndepth = {}\ngb_per_second = {:.4g}\n",
                        static_cast<f64>(s.piece_bytes) / static_cast<f64>(kKiB), s.depth, s.gb_per_second);
  text += kernels_toml(m);
  for (const SimGpu& gpu : m.gpus)
    text += fmt::format("\n[[gpu]]\nname = {}\nvram_gib = {:.4g}\ngb_per_second = {:.4g}\nlink_gb_per_second = {:.4g}\n"
                        "expert_gb_per_second = {:.4g}\nattention_tflops = {:.4g}\n",
                        quoted(gpu.name), gib(gpu.vram_bytes), gpu.gb_per_second, gpu.link_gb_per_second, gpu.expert_gb_per_second,
                        gpu.attention_tflops);
  return text;
}

SimMachine parse_machine(std::string_view toml, const std::string& name) {
  toml::table table;
  try {
    table = toml::parse(toml);
  } catch (const toml::parse_error& e) {
    fail("{}, line {}: not TOML: {}", name, e.source().begin.line, e.description());
  }
  Section root(table, name, "");
  SimMachine m;
  m.name = root.text("name");
  m.ram_bytes = bytes_of_gib(root.number("ram_gib"));
  m.layer_overhead_us = root.number_or("layer_overhead_us", 0, true);
  m.wake_us = root.number_or("wake_us", 0, true);
  m.attention_gflops = root.number_or("attention_gflops", 0, true);
  Section dram = root.section("dram");
  m.dram_gb_per_second = dram.number("gb_per_second");
  dram.end();
  Section ssd = root.section("ssd");
  m.ssd_gb_per_second = ssd.number("gb_per_second");
  m.ssd_latency_us = ssd.number("latency_us", true);
  for (Section& speed : ssd.sections_or_none("measured")) m.ssd_speeds.push_back(read_ssd_speed(speed));
  ssd.end();
  read_kernels(root.section("kernels"), m);
  if (std::optional<Section> streamed = root.section_or_none("streamed")) read_streamed(*streamed, m);
  for (Section& gpu : root.sections_or_none("gpu")) m.gpus.push_back(read_gpu(gpu));
  root.end();
  check(m, name);
  return m;
}

SimMachine read_machine_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  if (!in || !(text << in.rdbuf())) fail("{}: cannot read this machine file; does it exist?", path);
  return parse_machine(text.str(), path);
}

}  // namespace stoker
