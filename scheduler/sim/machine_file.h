// Machine files: a SimMachine as TOML. See tools/machines/ for examples; every key is explained there, but [streamed] and
// [[ssd.measured]], which `stoker tune --measure` adds (sim_machine.h).
#pragma once

#include <string>
#include <string_view>

#include "scheduler/sim/sim_machine.h"

namespace stoker {

// `name` is for messages. Throws Error for what is missing, unknown, of the wrong kind or out of range.
SimMachine parse_machine(std::string_view toml, const std::string& name);
SimMachine read_machine_file(const std::string& path);

// The file's text, numbers to four digits. `about` becomes comments at its top, a line each.
std::string machine_toml(const SimMachine& machine, std::string_view about);

}  // namespace stoker
