// What `stoker simulate` is asked to simulate: command line -> machine, model, plan, routing, policy.
#pragma once

#include <memory>
#include <string>

#include "scheduler/model_file/expert_table.h"
#include "scheduler/plan.h"
#include "scheduler/policy/residency_policy.h"
#include "scheduler/sim/routing_source.h"
#include "scheduler/sim/sim_machine.h"
#include "scheduler/sim/sim_model.h"
#include "tools/options.h"

namespace stoker {

struct SimSetup {
  std::string model;  // the shape's name or the file's
  SimMachine machine;
  ExpertTable table;
  SimResident resident;
  Homes homes;  // of resident, on the machine's GPUs
  Plan plan;
  TraceHeader routing;  // shape of the model's router
  i64 piece = 0;        // tokens of a prompt that pass the model together
};

// Throws Error for what does not exist, does not fit together or does not fit in the machine.
SimSetup sim_setup(const Options& options);
// --routing.
std::unique_ptr<RoutingSource> sim_routing(const Options& options, const SimSetup& setup);
// --policy: the one place where simulated policies are chosen.
std::unique_ptr<ResidencyPolicy> sim_policy(const Options& options, const SimSetup& setup);

}  // namespace stoker
