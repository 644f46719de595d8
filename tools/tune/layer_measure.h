// What a layer takes that its weights do not explain: handing products over to the cores, norms, rotations, the choice of experts,
// the scheduler. Measured by generating with a model whose weights are so few that they hardly count.
#pragma once

#include "kernels/base/types.h"

namespace stoker {

// Microseconds per layer. `gb_per_second`: what the cores make of Q4_K weights in their own caches, whose time is taken off.
f64 measure_layer_overhead_us(int threads, f64 gb_per_second);

}  // namespace stoker
