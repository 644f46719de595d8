// BatchRow: one token to compute. Plain data.
#pragma once

#include "kernels/base/ids.h"

namespace stoker {

struct BatchRow {
  SequenceId sequence;
  i32 position = 0;  // rows of one sequence are consecutive in the batch, positions ascending by one
  i32 token = 0;
  bool logits = false;  // whether its logits are wanted
};

}  // namespace stoker
