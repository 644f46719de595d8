// Which experts see a token, on the card: the same choice as kernels/cpu/router_ops.cc, ties included (the lowest index
// of equal scores), one warp per token.
#pragma once

#include <cmath>

#include "kernels/cuda/rows.h"

namespace stoker::cuda {

// Shared memory of a block: probabilities, choices, group scores, and whether each expert is taken.
HOST_DEVICE i64 route_shared_bytes(i64 experts) { return experts * (3 * 4 + 4); }

template <class Machine>
class TokenRouter {
 public:
  HOST_DEVICE TokenRouter(const Machine& m, const RouteArgs& a)
      : m_(m),
        a_(a),
        probability_(m.template shared<f32>(0)),
        choice_(m.template shared<f32>(4 * a.experts)),
        score_(m.template shared<f32>(8 * a.experts)),
        taken_(m.template shared<i32>(12 * a.experts)) {}

  HOST_DEVICE void route(i64 token) const {
    const f32* logits = a_.logits + token * a_.experts;
    for (i64 e = lane(); e < a_.experts; e += kWarp)
      probability_[e] = a_.sigmoid ? 1.0f / (1.0f + expf(-logits[e])) : logits[e];
    m_.sync();
    if (!a_.sigmoid) softmax();
    for (i64 e = lane(); e < a_.experts; e += kWarp) {
      const f32 score = rounded_sum(probability_[e], a_.bias != nullptr ? a_.bias[e] : 0.0f);
      choice_[e] = score != score ? -INFINITY : score;
      taken_[e] = 0;
    }
    m_.sync();
    if (a_.groups > 1) drop_groups();
    select(a_.ids + token * a_.top_k, a_.weights + token * a_.top_k);
  }

 private:
  HOST_DEVICE int lane() const { return m_.thread(); }

  // The sum in the twin's order.
  HOST_DEVICE void softmax() const {
    if (lane() == 0) {
      f32 best = probability_[0], sum = 0;
      for (i64 e = 1; e < a_.experts; e++)
        if (best < probability_[e]) best = probability_[e];
      for (i64 e = 0; e < a_.experts; e++) sum += probability_[e] = expf(probability_[e] - best);
      score_[0] = sum;
    }
    m_.sync();
    const f32 sum = score_[0];
    m_.sync();
    for (i64 e = lane(); e < a_.experts; e += kWarp) probability_[e] /= sum;
    m_.sync();
  }

  HOST_DEVICE f32 group_score(i64 group, i64 size) const {
    f32 first = -INFINITY, second = -INFINITY;
    for (i64 e = group * size; e < (group + 1) * size; e++) {
      if (choice_[e] > first) {
        second = first;
        first = choice_[e];
      } else if (choice_[e] > second) {
        second = choice_[e];
      }
    }
    return a_.group_score_is_max || size == 1 ? first : first + second;
  }

  HOST_DEVICE void drop_groups() const {
    const i64 size = a_.experts / a_.groups;
    for (i64 g = lane(); g < a_.groups; g += kWarp) score_[g] = group_score(g, size);
    m_.sync();
    for (i64 n = 0; n < a_.groups_used; n++) take_best(score_, a_.groups);
    for (i64 e = lane(); e < a_.experts; e += kWarp)
      if (taken_[e / size] == 0) choice_[e] = -INFINITY;
    m_.sync();
    for (i64 g = lane(); g < a_.groups; g += kWarp) taken_[g] = 0;
    m_.sync();
  }

  // As the twin's, by all lanes, which all get the index.
  HOST_DEVICE i32 take_best(const f32* score, i64 count) const {
    f32 best = -INFINITY;
    i32 index = 0x7fffffff;
    for (i64 i = lane(); i < count; i += kWarp)
      if (taken_[i] == 0 && (index == 0x7fffffff || score[i] > best)) {
        best = score[i];
        index = static_cast<i32>(i);
      }
    for (int bits = 1; bits < kWarp; bits *= 2) {
      const f32 other = m_.from_lane_xor(best, bits);
      const i32 other_index = m_.from_lane_xor(index, bits);
      if (other > best || (other == best && other_index < index)) {
        best = other;
        index = other_index;
      }
    }
    m_.sync();
    if (lane() == 0) taken_[index] = 1;
    m_.sync();
    return index;
  }

  HOST_DEVICE void select(i32* ids, f32* weights) const {
    f32 sum = 0;
    for (i64 k = 0; k < a_.top_k; k++) {
      const i32 best = take_best(choice_, a_.experts);
      sum += probability_[best];
      if (lane() == 0) ids[k] = best;
    }
    const f32 factor = a_.normalise ? a_.scale / (sum + 1e-20f) : a_.scale;
    if (lane() == 0)
      for (i64 k = 0; k < a_.top_k; k++) weights[k] = rounded_product(probability_[ids[k]], factor);
    m_.sync();
  }

  const Machine& m_;
  const RouteArgs& a_;
  f32 *probability_, *choice_, *score_;
  i32* taken_;
};

// Blocks of one warp with route_shared_bytes().
template <class Machine>
HOST_DEVICE void route_tokens(const Machine& m, const RouteArgs& a) {
  const TokenRouter<Machine> router(m, a);
  for (i64 t = m.block(); t < a.tokens; t += m.blocks()) router.route(t);
}

}  // namespace stoker::cuda
