// Planner: fills a Plan from a model's experts and a number of bytes.
#pragma once

#include <string>
#include <vector>

#include "scheduler/machine.h"
#include "scheduler/model_file/expert_table.h"
#include "scheduler/plan.h"
#include "scheduler/tiers/reader.h"

namespace stoker {

// A device's memory for experts, and its speeds as DevicePlan has them.
struct DeviceRequest {
  i64 vram_bytes = 0;
  f64 link_gb_per_second = DevicePlan{}.link_gb_per_second;
  f64 gb_per_second = DevicePlan{}.gb_per_second;
};

struct PlanRequest {
  i64 ram_bytes = 0;     // for experts
  i64 alignment = 4096;  // see plan_alignment
  i64 ring_depth = Plan{}.ring_depth;
  i64 piece_bytes = Plan{}.piece_bytes;
  std::vector<DeviceRequest> devices = {};
  f64 cpu_gb_per_second = Plan{}.cpu_gb_per_second;
};

// What all of the reader's files can be read at, and at least a page.
i64 plan_alignment(const Reader& reader, const ExpertTable& table);

// Slots per class in proportion to the layers that use it. Never more bytes than asked for, never more slots
// than experts. Throws Error below smallest_budget(), naming it. A device may be too small for any expert.
Plan make_plan(const ExpertTable& table, const PlanRequest& request);

// One layer's need for one token: top-k slots of every class.
i64 smallest_budget(const ExpertTable& table, i64 alignment);
// Every expert has a slot.
i64 full_budget(const ExpertTable& table, i64 alignment);

// A line for the user when the plan holds less than one token needs (every token then reads most of its
// experts from disk); empty when there is nothing to say.
std::string plan_warning(const ExpertTable& table, const Plan& plan);

// What experts may use when the user does not say: what is available, less what the program is still going to
// allocate (resident weights that no device will have and KV, which are not in memory yet) and a margin. 0 when nothing is left.
i64 default_expert_budget(const Machine& machine, i64 resident_bytes, i64 kv_bytes);
// Kept free for scratch buffers, page tables and the rest of the system: 1/16 of RAM, 512 MiB to 8 GiB.
i64 memory_margin(const Machine& machine);

}  // namespace stoker
