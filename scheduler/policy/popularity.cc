#include "scheduler/policy/popularity.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace stoker {

Popularity::Popularity(i64 moe_layers, i64 experts)
    : experts_(experts), tokens_(static_cast<size_t>(moe_layers)), uses_(static_cast<size_t>(moe_layers * experts)) {}

void Popularity::add(i64 moe_layer, i64 tokens, std::span<const i32> ids) {
  f32 left = static_cast<f32>(std::exp2(-static_cast<f64>(tokens) / static_cast<f64>(kHalfLifeTokens)));
  f32& all = tokens_[static_cast<size_t>(moe_layer)];
  all = all * left + static_cast<f32>(tokens);
  std::span<f32> uses = std::span(uses_).subspan(static_cast<size_t>(moe_layer * experts_), static_cast<size_t>(experts_));
  for (f32& u : uses) u *= left;
  for (i32 id : ids) uses[static_cast<size_t>(id)] += 1;
}

void Popularity::set(i64 moe_layer, f32 tokens, std::span<const f32> uses) {
  CHECK(static_cast<i64>(uses.size()) == experts_);
  tokens_[static_cast<size_t>(moe_layer)] = tokens;
  std::copy(uses.begin(), uses.end(), uses_.begin() + moe_layer * experts_);
}

std::span<const f32> Popularity::uses(i64 moe_layer) const {
  return std::span(uses_).subspan(static_cast<size_t>(moe_layer * experts_), static_cast<size_t>(experts_));
}

f64 Popularity::share(i64 moe_layer, i64 expert) const {
  f64 tokens = static_cast<f64>(tokens_[static_cast<size_t>(moe_layer)]);
  if (tokens <= 0) return 0;
  return std::min(1., static_cast<f64>(uses_[static_cast<size_t>(moe_layer * experts_ + expert)]) / tokens);
}

}  // namespace stoker
