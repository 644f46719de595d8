// BatchRow: one token to compute. Plain data.
#pragma once

#include "kernels/base/ids.h"

namespace stoker {

// What a row is for, and with it the form of its attention. The forms differ in the last bits of a float, so neither
// the length of a chunk nor a neighbour in the batch may choose: a prompt has the same logits however it is cut.
enum class RowRole : u8 { prompt, generated };

struct BatchRow {
  SequenceId sequence;
  i32 position = 0;  // rows of one sequence are consecutive in the batch, positions ascending by one
  i32 token = 0;
  bool logits = false;  // whether its logits are wanted
  // At most kGeneratedRows rows of a sequence are generated ones.
  RowRole role = RowRole::prompt;

  static constexpr i64 kGeneratedRows = 8;
};

}  // namespace stoker
