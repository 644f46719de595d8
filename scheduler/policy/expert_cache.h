// ExpertCache: keeps the experts that the next token wants with the highest probability: the larger of what is expected
// (on_expect) and what their past says.
//
// The past is a count of uses, halved every so many tokens of the expert's layer. Uses count alike: weighted by their gates
// they told less (ARCHITECTURE.md). One half-life is `ema`. `auto` keeps several, from one token to thousands, and mixes
// the probabilities they give: each layer learns from what is really used how far its counts can be believed (the share of
// a count is the mean of its posterior, as in online EM). So it turns to frequency where habits last and to recency where
// they do not, without being told which it is.
// What is known of earlier runs takes the place of some first tokens.
// Counts go on for experts that are not resident, so one that comes back is not a stranger.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "scheduler/policy/popularity.h"
#include "scheduler/policy/scored_cache.h"

namespace stoker {

class ExpertCache final : public ScoredCache {
 public:
  // What is left of a count after one token; one to kMost of them.
  static constexpr size_t kMost = 5;
  // `known` (null: nothing is) is what the first tokens go by; it fades as they pass.
  ExpertCache(const Plan& plan, i64 experts_per_layer, i64 top_k, std::span<const f64> decays,
              const Popularity* known = nullptr);

  // Shares of the layer's counts, which add up to 1.
  std::span<const f64> shares(i64 moe_layer) const;
  // That the next token of its layer wants the expert, by its past.
  f64 probability(ExpertKey key) const { return value(key.moe_layer, key.moe_layer * experts_per_layer() + key.expert.value); }

 private:
  struct Past {
    std::array<f32, kMost> counts{};  // as they were at `time`
    i64 time = 0;                     // of the layer's clock
  };
  struct Clock {
    i64 tokens = 0;
    std::array<f64, kMost> shares{};
    std::array<f64, kMost> scale{};  // from a count to a probability
    std::array<f64, kMost> per_use{};  // of the batch at hand: what a use adds to a count
  };

  void turn(i64 moe_layer, i64 tokens) override;
  void used(i64 moe_layer, i64 node, i64 tokens, f32 gate_weight) override;
  f64 value(i64 moe_layer, i64 node) const override;
  bool is_probability() const override { return true; }

  void begin_with(const Popularity& known);
  f64 left(size_t count, i64 tokens) const;
  void learn(Clock& clock, const Past& past);

  std::vector<f64> decays_;
  std::vector<std::vector<f32>> left_;  // [count][tokens]: what is left after so many
  std::vector<Past> pasts_;             // [moe layers * experts]
  std::vector<Clock> clocks_;           // [moe layers]
};

}  // namespace stoker
