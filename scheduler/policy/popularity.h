// Popularity: how often tokens want each expert of a model, over a long time. A policy starts from it, and the static one
// has nothing else. Pure; plain data with one owner.
#pragma once

#include <span>
#include <vector>

#include "kernels/base/types.h"

namespace stoker {

class Popularity {
 public:
  // Half of what is known is that of the last so many tokens: long enough to be a habit, not a subject.
  static constexpr i64 kHalfLifeTokens = 4096;

  Popularity() = default;  // of no model
  Popularity(i64 moe_layers, i64 experts);

  i64 moe_layers() const { return static_cast<i64>(tokens_.size()); }
  i64 experts() const { return experts_; }

  // So many tokens have passed this layer, and their experts were these, each as often as it was chosen.
  void add(i64 moe_layer, i64 tokens, std::span<const i32> ids);
  // The same from sums: `uses` [experts]. Replaces what was known of the layer.
  void set(i64 moe_layer, f32 tokens, std::span<const f32> uses);

  // Tokens that are remembered, older ones for less. 0: nothing is known of the layer.
  f32 tokens(i64 moe_layer) const { return tokens_[static_cast<size_t>(moe_layer)]; }
  std::span<const f32> uses(i64 moe_layer) const;  // [experts]
  // That a token wants this expert.
  f64 share(i64 moe_layer, i64 expert) const;

 private:
  i64 experts_ = 0;
  std::vector<f32> tokens_;  // [moe layers]
  std::vector<f32> uses_;    // [moe layers * experts]
};

}  // namespace stoker
