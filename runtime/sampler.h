// Sampler: logits -> next token. Order of the steps, as llama.cpp users expect: logit bias, penalties, top-k, top-p,
// min-p, temperature. One owner thread.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/base/types.h"
#include "runtime/token_filter.h"

namespace stoker {

struct SamplerOptions {
  f32 temperature = 0.8f;  // 0: greedy
  i64 top_k = 40;          // 0: all
  f32 top_p = 0.95f;       // 1: all
  f32 min_p = 0.05f;       // 0: all
  f32 repeat_penalty = 1.0f;  // 1: off
  // Taken off the logits of recent tokens, once, and once per occurrence (OpenAI's API reference).
  f32 presence_penalty = 0, frequency_penalty = 0;
  i64 repeat_window = 64;  // last tokens that the penalties look at; -1: all
  u64 seed = 0;
  std::vector<std::pair<i32, f32>> logit_bias = {};  // token, what is added to its logit; -infinity: never
};

class Sampler {
 public:
  Sampler(const SamplerOptions& options, i64 vocab);

  // `logits` [vocab]. `history`: all tokens so far, prompt included (the penalties use its end). A token that `filter`
  // refuses is drawn again from those it allows: mostly the first one is allowed, and asking for one is cheap.
  i32 sample(std::span<const f32> logits, std::span<const i32> history, TokenFilter* filter = nullptr);

 private:
  struct Candidate {
    i32 token;
    f32 logit;
  };
  class Ranking;

  void penalise(std::span<const i32> recent);
  i32 choose(std::span<const f32> logits);
  void collect(std::span<const f32> logits);
  size_t count_kept(Ranking& ranking) const;
  i32 draw(std::vector<Candidate>& candidates);

  SamplerOptions options_;
  Rng rng_;
  std::vector<f32> changed_;           // [vocab]; by bias, penalties or the filter
  std::vector<i32> recent_;            // sorted
  std::vector<f32> best_, ranked_;     // [blocks of the vocabulary]
  std::vector<Candidate> candidates_;  // [vocab]
};

// Index of the largest logit; the lowest index wins a tie, and NaN never wins (0 when there is nothing else).
i32 argmax(std::span<const f32> logits);

}  // namespace stoker
