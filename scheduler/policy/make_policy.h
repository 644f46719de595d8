// make_policy: a residency policy by its name, and the names there are.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "scheduler/plan.h"
#include "scheduler/policy/residency_policy.h"

namespace stoker {

struct PolicyRow {
  std::string_view name;
  std::string_view about;
};
std::span<const PolicyRow> policy_rows();  // the default first

// Throws Error, with all names, for one that is none of them.
std::unique_ptr<ResidencyPolicy> make_policy(std::string_view name, const Plan& plan, i64 experts_per_layer, i64 top_k);

}  // namespace stoker
