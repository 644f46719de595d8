// A plan of which policies see only the classes.
#pragma once

#include <vector>

#include "scheduler/plan.h"

namespace stoker::test {

inline Plan plan_of(const std::vector<i64>& class_of_layer, i64 classes) {
  Plan plan;
  plan.class_of_moe_layer = class_of_layer;
  plan.classes.resize(static_cast<size_t>(classes));
  return plan;
}

}  // namespace stoker::test
