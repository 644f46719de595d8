// SyntheticRouting: routing made up by a model that has the statistics of real traces, for the measuring of caches where
// there is no trace of the model itself.
//
// The score of expert e in layer l at token t is  z = b + a + s + f + n :
//   b  fixed; from the popularity of DeepSeek-V3's experts (v3_popularity.h), by inverse probit, so that the share of
//      tokens that choose an expert is as measured
//   a  of the prompt; half of its variance is that of a domain, which lasts for some prompts
//   s  slow: AR(1) over tokens with factor 0.98
//   f  fast: AR(1) with factor 0.5
//   n  the rest, new for every token
// a + s + f + n have variance 1; a profile says how it is shared. Then DeepSeek-V3's rule chooses: groups by the sum of
// their two best, experts within the best groups. Gate weights go by rank, with the shares of sigmoid gates.
// The same options give the same records, which have their scores. Owner: one thread.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/base/rng.h"
#include "scheduler/trace/group_choice.h"
#include "scheduler/trace/normal_table.h"
#include "scheduler/trace/trace_format.h"

namespace stoker {

struct RoutingProfile {
  std::string_view name;
  f64 prompt = 0, slow = 0, fast = 0;  // shares of the variance
};

// pessimistic, mid, default, optimistic. Throws Error for another name.
const RoutingProfile& routing_profile(std::string_view name);

struct SyntheticOptions {
  TraceHeader shape;
  std::string_view profile = "default";
  i64 tokens = 4000;
  i64 prompts = 8;  // of equal length
  u64 seed = 1;
  // How much of what is new at a token (in f and n) a layer shares with the layer before, for predictors that look at
  // neighbouring layers: the correlation of the new part, over a fixed pairing of experts.
  f64 coupling = 0;
};

// The shape of DeepSeek-V3's router.
TraceHeader deepseek_v3_routing();

class SyntheticRouting final : public TraceSource {
 public:
  explicit SyntheticRouting(const SyntheticOptions& options);  // throws Error

  const TraceHeader& header() const override { return options_.shape; }
  bool next(TraceRecord& record) override;

 private:
  // All of one layer, [experts] each; variances included.
  struct Layer {
    std::vector<f32> fixed, domain, prompt, slow, fast;
    f32 prompt_sd = 0, slow_sd = 0, fast_sd = 0, new_sd = 0;
  };

  void set_up_layer(i64 index);
  void begin_prompt();
  void step(Layer& layer, i64 index);
  void weigh(f32* weights);
  f32* draw(i64 count);

  SyntheticOptions options_;
  RoutingProfile profile_;
  NormalTable normal_;
  GroupChoice choice_;
  Rng rng_;
  std::vector<Layer> layers_;
  std::vector<f32> rank_shares_;                  // [top_k]
  std::vector<f32> drawn_, scores_;               // scratch
  std::vector<f32> new_fast_, new_rest_;          // [experts], of the layer before
  i64 token_ = 0, prompt_ = -1, position_ = 0, prompt_tokens_ = 0;
};

}  // namespace stoker
