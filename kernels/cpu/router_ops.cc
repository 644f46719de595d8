// Selection of experts: a few thousand comparisons per token, in plain C++.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/device/stream.h"

namespace stoker::cpu {

namespace {

constexpr f32 kNever = -std::numeric_limits<f32>::infinity();

class TokenRouter {
 public:
  explicit TokenRouter(const RouteArgs& args) : a_(args) {
    CHECK(a_.experts <= kMaxExperts && a_.top_k <= a_.experts);
    CHECK(a_.groups <= 1 || (a_.groups <= a_.experts && a_.experts % a_.groups == 0 && a_.groups_used <= a_.groups));
  }

  void route(i64 token) {
    const f32* logits = a_.logits + token * a_.experts;
    if (a_.sigmoid)
      sigmoid(logits);
    else
      softmax(logits);
    for (i64 e = 0; e < a_.experts; e++) {
      f32 score = probability_[e] + (a_.bias != nullptr ? a_.bias[e] : 0.0f);
      // Logits that are no numbers must still give distinct experts; their weights stay NaN and tell.
      choice_[e] = std::isnan(score) ? kNever : score;
    }
    if (a_.groups > 1) drop_groups();
    select(a_.ids + token * a_.top_k, a_.weights + token * a_.top_k);
  }

 private:
  void sigmoid(const f32* logits) {
    for (i64 e = 0; e < a_.experts; e++) probability_[e] = 1.0f / (1.0f + std::exp(-logits[e]));
  }

  void softmax(const f32* logits) {
    f32 best = *std::max_element(logits, logits + a_.experts), sum = 0;
    for (i64 e = 0; e < a_.experts; e++) sum += probability_[e] = std::exp(logits[e] - best);
    for (i64 e = 0; e < a_.experts; e++) probability_[e] /= sum;
  }

  f32 group_score(i64 group, i64 size) const {
    f32 first = kNever, second = kNever;
    for (i64 e = group * size; e < (group + 1) * size; e++) {
      if (choice_[e] > first) {
        second = first;
        first = choice_[e];
      } else {
        second = std::max(second, choice_[e]);
      }
    }
    return a_.group_score_is_max || size == 1 ? first : first + second;
  }

  // Experts of all but the best groups can no longer be chosen.
  void drop_groups() {
    i64 size = a_.experts / a_.groups;
    f32 score[kMaxExperts];
    bool kept[kMaxExperts] = {};
    for (i64 g = 0; g < a_.groups; g++) score[g] = group_score(g, size);
    for (i64 n = 0; n < a_.groups_used; n++) take_best(score, a_.groups, kept);
    for (i64 e = 0; e < a_.experts; e++)
      if (!kept[e / size]) choice_[e] = kNever;
  }

  // Index of the largest score that is not taken yet, the lowest of equal ones; takes it.
  static i64 take_best(const f32* score, i64 count, bool* taken) {
    i64 best = -1;
    for (i64 i = 0; i < count; i++)
      if (!taken[i] && (best < 0 || score[i] > score[best])) best = i;
    taken[best] = true;
    return best;
  }

  // The best ones, best first, the lowest index first of equal ones: each expert moves up past those it beats.
  void rank(i32* ids) const {
    for (i64 e = 0, count = 0; e < a_.experts; e++) {
      if (count == a_.top_k && !(choice_[e] > choice_[ids[count - 1]])) continue;
      i64 place = count < a_.top_k ? count++ : count - 1;
      for (; place > 0 && choice_[e] > choice_[ids[place - 1]]; place--) ids[place] = ids[place - 1];
      ids[place] = static_cast<i32>(e);
    }
  }

  void select(i32* ids, f32* weights) const {
    rank(ids);
    f32 sum = 0;
    for (i64 k = 0; k < a_.top_k; k++) {
      weights[k] = probability_[ids[k]];
      sum += weights[k];
    }
    f32 factor = a_.normalise ? a_.scale / (sum + 1e-20f) : a_.scale;
    for (i64 k = 0; k < a_.top_k; k++) weights[k] *= factor;
  }

  const RouteArgs& a_;
  f32 probability_[kMaxExperts];
  f32 choice_[kMaxExperts];
};

}  // namespace

void route(Stream& stream, const RouteArgs& args) {
  stream.workers().for_ranges(args.tokens, 4, [&](i64 begin, i64 end) {
    TokenRouter router(args);
    for (i64 t = begin; t < end; t++) router.route(t);
  });
}

}  // namespace stoker::cpu
