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

// Of a layer whose cores multiply with the KV cache, where it is known how fast they do.
i64 attention_ns(const SimMachine& machine, const SimResident& resident);
// The same where this GPU is home. Of shared heads (SimResident) each GPU reads the whole cache, and there is one more hand-over.
f64 attention_ns(const SimMachine& machine, const SimResident& resident, const SimGpu& home);
// Of the parts of the output head on GPUs, their logits' way back included.
f64 head_ns(const SimMachine& machine, const SimResident& resident, const Homes& homes);
// Time of computing one token's routed experts with the memory to themselves: the mean over the layers' formats.
f64 experts_ns(const SimMachine& machine, const ExpertTable& table);

// Per token. What a policy makes of a model: 0 for nothing to read, nothing in VRAM, nothing to copy.
struct SimTraffic {
  f64 ssd_bytes = 0;
  f64 device_bytes = 0;  // of routed experts that GPUs compute
  f64 copied_bytes = 0;  // between RAM and GPUs, both directions together
};

// The slowest of: drive; computing (the fixed part, then cores and GPUs side by side); memory (cores, drive and links).
SimBound bound(const SimMachine& machine, const ExpertTable& table, const SimResident& resident, const Homes& homes,
               const SimTraffic& traffic);

}  // namespace stoker
