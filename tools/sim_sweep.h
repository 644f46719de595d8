// Simulations over a range of RAM budgets.
#pragma once

#include "tools/options.h"

namespace stoker {

// What `stoker simulate --sweep-ram` prints and draws. Throws Error, Interrupted.
int sweep_ram(const Options& options);

}  // namespace stoker
