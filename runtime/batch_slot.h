// BatchSlot: one sequence of the engine and the generation that runs in it. It outlives generations, and so does what
// its KV cache holds: the next one continues from the part that both have in common. Owner: the engine thread.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "runtime/forward.h"
#include "runtime/generation.h"

namespace stoker {

class Engine;
class KvCache;

class BatchSlot {
 public:
  BatchSlot(Engine& engine, SequenceId sequence);

  bool busy() const { return generation_ != nullptr; }
  bool prompting() const { return busy() && !pending_ && fed() < prompt_size(); }
  bool generating() const { return busy() && pending_.has_value(); }
  bool cancelled() const { return busy() && generation_->cancelled.load(std::memory_order_relaxed); }
  SequenceId sequence() const { return sequence_; }
  i64 held() const { return static_cast<i64>(tokens_.size()); }  // positions in the KV cache
  i64 last_used_ns() const { return last_used_ns_; }
  const GenerationResult& result() const { return result_; }  // so far

  // Tokens of `prompt` that need not be computed. Short common starts count as none: every chat begins with the same
  // few tokens, and without reuse unrelated answers keep the bits they have alone.
  i64 common_prefix(std::span<const i32> prompt) const;

  // For whoever saves and restores what an idle slot holds: the tokens of the cache, which must change together.
  std::span<const i32> tokens() const { return tokens_; }
  KvCache& cache() const;
  void set_tokens(std::vector<i32> tokens);  // cuts the cache to as many

  void begin(std::shared_ptr<Generation> generation);

  // One more piece of the prompt. Its borders are multiples of the engine's chunk, so they depend on the prompt alone.
  // `logits` [vocab]; `between`: see Engine::forward. One whose generation is cancelled meanwhile is given up: the cache
  // has whole pieces only.
  void feed_prompt(std::span<f32> logits, const std::function<void()>& between = {});

  BatchRow next_row() const;  // of the token sampled last
  // What came of next_row(). On any one thread, while the engine thread waits.
  void computed(std::span<const f32> logits);
  void fail(const Status& status);

  void end(GenerationEnd reason);
  // Calls on_done of the generation that has ended: apart, so that the slot counts as free when its client hears of it.
  void announce();

 private:
  static constexpr i64 kShortestReuse = 16;
  i64 fed() const { return held(); }
  i64 prompt_size() const { return static_cast<i64>(generation_->prompt.size()); }
  void sample(std::span<const f32> logits);
  void note_time();

  Engine& engine_;
  SequenceId sequence_;
  std::vector<i32> tokens_;  // what the KV cache holds
  std::vector<BatchRow> rows_;
  std::shared_ptr<Generation> generation_, ended_;
  std::optional<Sampler> sampler_;
  std::optional<i32> pending_;  // sampled and handed out, not computed
  GenerationResult result_;
  i64 begun_ns_ = 0, first_logits_ns_ = 0, last_used_ns_ = 0;
  i64 hits_before_ = 0, misses_before_ = 0;
};

// The natural logarithm of softmax(logits), for `token` and the `count` likeliest.
GeneratedToken with_logprobs(std::span<const f32> logits, i32 token, i64 count);

}  // namespace stoker
