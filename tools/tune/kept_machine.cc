#include "tools/tune/kept_machine.h"

#include <filesystem>

#include "kernels/base/error.h"
#include "scheduler/sim/machine_file.h"
#include "tools/terminal.h"
#include "tools/tune/machine_measure.h"
#include "tools/tune/profile.h"

namespace stoker {

namespace fs = std::filesystem;

std::string kept_machine_path() {
  std::string folder = profile_folder();
  return folder.empty() ? "" : (fs::path(folder) / "machine.toml").string();
}

std::optional<SimMachine> kept_machine() {
  std::string path = kept_machine_path();
  std::error_code ignored;
  if (path.empty() || !fs::exists(path, ignored)) return {};
  try {
    SimMachine machine = read_machine_file(path);
    if (!machine.name.starts_with(machine_name()))
      fail("{}: speeds of another machine, {}; this one is {}", path, machine.name, machine_name());
    return machine;
  } catch (const Error& e) {
    note("warning: {}; `stoker tune --measure` measures this machine", e.what());
    return {};
  }
}

}  // namespace stoker
