// The speeds of this machine, as `stoker tune` has measured and kept them beside the profiles.
#pragma once

#include <optional>
#include <string>

#include "scheduler/sim/sim_machine.h"

namespace stoker {

// machine.toml in profile_folder(), which may not exist yet; "" when neither of its variables is set.
std::string kept_machine_path();

// None when nothing was kept; with a warning when that is damaged, or of another machine.
std::optional<SimMachine> kept_machine();

}  // namespace stoker
