// The machines that `stoker simulate` knows by name: tools/machines/*.toml, compiled into the binary.
#pragma once

#include <string>
#include <string_view>

#include "scheduler/sim/sim_machine.h"

namespace stoker {

// The files' texts, made by tools/embed_text.py.
std::string_view machine_tower_2x3090_4x32gb();
std::string_view machine_tower_2x3090_2x64gb_gen5();
std::string_view machine_1x3090_64gb();
std::string_view machine_cpu_only_24gb();

// One of them, or a file's. Throws Error, listing the names, when it is neither.
SimMachine find_machine(const std::string& name_or_path);

}  // namespace stoker
