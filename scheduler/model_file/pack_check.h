// Reads a whole pack and compares everything that has a checksum.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "scheduler/model_file/expert_table.h"

namespace stoker {

class Gguf;

struct PackCheck {
  i64 experts = 0, tensors = 0;      // compared
  i64 bytes = 0;                     // of these
  std::vector<std::string> damaged;  // a line for each, with file and place
};

// Throws Error when `pack` is none or cannot be read, and what `progress(done, total)` throws.
PackCheck check_pack(const Gguf& pack, const ExpertTable& experts, const std::function<void(i64, i64)>& progress);

}  // namespace stoker
