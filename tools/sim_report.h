// What `stoker simulate` prints.
#pragma once

#include <string>

#include "tools/sim_run.h"

namespace stoker {

// `foreseen`: foreseen_tokens_per_second(), or 0 when nothing is read.
std::string sim_text(const SimReport& report, f64 foreseen);
std::string sim_json(const SimReport& report, f64 foreseen);

}  // namespace stoker
