#include "tools/machines.h"

#include <fmt/format.h>

#include <array>

#include "kernels/base/error.h"
#include "scheduler/sim/machine_file.h"

namespace stoker {

namespace {

struct BuiltIn {
  std::string_view name;
  std::string_view (*text)();
};

constexpr std::array kBuiltIn = {
    BuiltIn{"tower-2x3090-4x32GB", machine_tower_2x3090_4x32gb},
    BuiltIn{"tower-2x3090-2x64GB-gen5", machine_tower_2x3090_2x64gb_gen5},
    BuiltIn{"1x3090-64GB", machine_1x3090_64gb},
    BuiltIn{"cpu-only-24GB", machine_cpu_only_24gb},
};

}  // namespace

SimMachine find_machine(const std::string& name_or_path) {
  std::string names;
  for (const BuiltIn& machine : kBuiltIn) {
    if (machine.name == name_or_path) return parse_machine(machine.text(), name_or_path);
    names += fmt::format("{}{}", names.empty() ? "" : ", ", machine.name);
  }
  bool is_path = name_or_path.find('/') != std::string::npos || name_or_path.ends_with(".toml");
  if (!is_path)
    fail("there is no machine '{}'; built in are {}; a file of your own ends in .toml", name_or_path, names);
  return read_machine_file(name_or_path);
}

}  // namespace stoker
