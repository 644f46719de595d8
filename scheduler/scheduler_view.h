// ResidencyView: where every expert is at a moment, for those who look on. Made by the engine thread when somebody asks.
#pragma once

#include <vector>

#include "kernels/base/ids.h"
#include "kernels/base/types.h"

namespace stoker {

// Two bits: it is told to browsers and dashboards as a number.
enum class ExpertTier : u8 { disk = 0, ram = 1, vram = 2, arriving = 3 };

struct ResidencyView {
  static constexpr u32 kNeverUsed = ~u32{0};

  i64 experts = 0;                     // per layer
  std::vector<LayerId> layers;         // that have experts, in order
  std::vector<ExpertTier> tiers;       // [layers, experts]
  std::vector<u32> passes_since_use;   // [layers, experts]; 0: in the last pass, or the one under way
};

}  // namespace stoker
