// Bounds: how fast a machine could go if everything overlapped that can, from bytes and speeds alone.
#pragma once

#include "scheduler/model_file/expert_table.h"
#include "scheduler/sim/sim_machine.h"
#include "scheduler/sim/sim_model.h"

namespace stoker {

struct SimBound {
  f64 ms = 0;  // per token, at least
  const char* limit = "";

  f64 tokens_per_second() const { return 1e3 / ms; }
};

// Time of one token outside its routed experts.
f64 fixed_ns(const SimMachine& machine, const SimResident& resident);
// Time of computing one token's routed experts with the memory to themselves: the mean over the layers' formats.
f64 experts_ns(const SimMachine& machine, const ExpertTable& table);

// The slowest of: drive, cores (fixed part, then experts), memory (cores and drive together). `ssd_bytes` are
// read per token: 0 for infinite bandwidth.
SimBound bound(const SimMachine& machine, const ExpertTable& table, const SimResident& resident, f64 ssd_bytes);

}  // namespace stoker
