// make_policy: a residency policy by its name, and the names there are.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "scheduler/plan.h"
#include "scheduler/policy/popularity.h"
#include "scheduler/policy/residency_policy.h"

namespace stoker {

struct PolicyRow {
  std::string_view name;
  std::string_view about;
  bool needs_popularity = false;
};
std::span<const PolicyRow> policy_rows();  // the default first

// `known`: how popular the experts are, or null; policies that learn begin with it, others have no use for it. Throws Error
// for a name that is none of them (with all there are), and for one that needs what is not known.
std::unique_ptr<ResidencyPolicy> make_policy(std::string_view name, const Plan& plan, i64 experts_per_layer, i64 top_k,
                                             const Popularity* known = nullptr);

}  // namespace stoker
