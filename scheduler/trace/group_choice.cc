#include "scheduler/trace/group_choice.h"

#include <algorithm>

namespace stoker {

i64 GroupChoice::choose(const f32* scores, i64 count, i64 groups_used, u16* ids) {
  i64 size = experts_ / groups_;
  groups_used = std::min(groups_used, groups_);
  best_groups_.clear();
  for (i64 g = 0; g < groups_; g++) {
    f32 first = -1e30f, second = -1e30f;
    for (i64 e = g * size; e < (g + 1) * size; e++) {
      second = std::max(second, std::min(first, scores[e]));
      first = std::max(first, scores[e]);
    }
    best_groups_.push_back({-(size > 1 ? first + second : first), g});
  }
  std::partial_sort(best_groups_.begin(), best_groups_.begin() + groups_used, best_groups_.end());
  i64 found = 0;
  for (i64 i = 0; i < groups_used; i++) {
    i64 g = best_groups_[static_cast<size_t>(i)].second;
    for (i64 e = g * size; e < (g + 1) * size; e++) {
      if (found == count && scores[e] <= scores[ids[count - 1]]) continue;
      i64 at = found < count ? found++ : count - 1;
      for (; at > 0 && scores[ids[at - 1]] < scores[e]; at--) ids[at] = ids[at - 1];
      ids[at] = static_cast<u16>(e);
    }
  }
  return found;
}

}  // namespace stoker
