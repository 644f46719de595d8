#include "scheduler/policy/piece_wants.h"

#include <algorithm>
#include <cmath>

namespace stoker {

namespace {

constexpr f64 kHalfLife = 2048;  // tokens: a few pages of text
// Of the distribution that p has beforehand: the most popular tenth of the experts then has 4.4 times its share.
constexpr f64 kFirstA = .5;

}  // namespace

PieceWants::PieceWants(i64 moe_layers, i64 experts_per_layer, i64 top_k)
    : experts_(experts_per_layer),
      first_b_(kFirstA * (static_cast<f64>(experts_per_layer) / static_cast<f64>(top_k) - 1)),
      tokens_(static_cast<size_t>(moe_layers)),
      uses_(static_cast<size_t>(moe_layers * experts_per_layer)) {}

void PieceWants::on_layer(i64 moe_layer, i64 tokens) {
  f64 left = std::exp2(-static_cast<f64>(tokens) / kHalfLife);
  f64& all = tokens_[static_cast<size_t>(moe_layer)];
  all = all * left + static_cast<f64>(tokens);
  for (i64 e = 0; e < experts_; e++) uses_[index({moe_layer, ExpertId(e)})] *= left;
}

void PieceWants::on_use(ExpertKey key, i64 tokens) { uses_[index(key)] += static_cast<f64>(tokens); }

f32 PieceWants::probability(ExpertKey key, i64 tokens) const {
  f64 uses = uses_[index(key)], n = static_cast<f64>(tokens);
  f64 a = kFirstA + uses, b = std::max(first_b_ + tokens_[static_cast<size_t>(key.moe_layer)] - uses, kFirstA);
  f64 nobody = std::lgamma(b + n) - std::lgamma(b) + std::lgamma(a + b) - std::lgamma(a + b + n);
  return static_cast<f32>(1 - std::exp(nobody));
}

}  // namespace stoker
