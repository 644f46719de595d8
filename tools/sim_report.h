// What `stoker simulate` prints.
#pragma once

#include <string>

#include "tools/sim_run.h"

namespace stoker {

std::string sim_text(const SimReport& report, const SimForeknown& known);
std::string sim_json(const SimReport& report, const SimForeknown& known);

}  // namespace stoker
