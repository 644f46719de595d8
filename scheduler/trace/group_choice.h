// GroupChoice: DeepSeek-V3's rule for choosing experts by their scores. A group's score is the sum of its two best; the best
// groups take part, and of their experts the best are chosen. Owner: one thread.
#pragma once

#include <utility>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class GroupChoice {
 public:
  GroupChoice(i64 experts, i64 groups) : experts_(experts), groups_(groups) {}

  // Writes at most `count` ids, best first, and returns how many: fewer when `groups_used` groups hold fewer.
  // scores [experts].
  i64 choose(const f32* scores, i64 count, i64 groups_used, u16* ids);

 private:
  i64 experts_, groups_;
  std::vector<std::pair<f32, i64>> best_groups_;  // scratch: (minus its score, group)
};

}  // namespace stoker
