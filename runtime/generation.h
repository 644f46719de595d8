// Generation: one request to a Batcher: a prompt, how to sample, and who hears about it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/types.h"
#include "runtime/sampler.h"

namespace stoker {

enum class GenerationEnd {
  end_of_text,   // the model ended it
  stopped,       // on_token returned false
  length,        // max_tokens
  context_full,
  cancelled,     // cancel(), or the batcher goes away
  failed,
};

struct TokenLogprob {
  i32 token = 0;
  f32 logprob = 0;  // natural logarithm, of the distribution before the sampler's steps
};

// What on_token gets.
struct GeneratedToken {
  i32 token = 0;
  f32 logprob = 0;                // when Generation::top_logprobs >= 0
  std::vector<TokenLogprob> top;  // the likeliest ones
};

struct GenerationResult {
  GenerationEnd end = GenerationEnd::length;
  Status status;               // the failure when end is failed
  i64 slot = -1;               // -1: it never got one
  i64 prompt_tokens = 0;
  i64 cached_tokens = 0;       // of the prompt: met in the slot's cache
  i64 generated_tokens = 0;
  f64 prompt_seconds = 0;      // from getting a slot to the first logits
  f64 generate_seconds = 0;    // from there to the end
  i64 expert_hits = 0, expert_misses = 0;  // of all sequences, while this one had its slot
};

struct Generation {
  std::vector<i32> prompt;  // 1 to `context` ids of the vocabulary
  i64 max_tokens = -1;      // -1: no limit
  SamplerOptions sampler;
  std::unique_ptr<TokenFilter> filter;  // null: any token may come
  i64 slot = -1;             // the only one that will do, which must exist; -1: any
  bool reuse_prefix = true;  // start from what a slot's cache has in common with the prompt
  i64 top_logprobs = -1;     // -1: no log probabilities

  // on_token is called by the engine thread or one of its workers, beside that of other generations; on_done by the
  // engine thread, once and last. They must not block.
  std::function<bool(const GeneratedToken&)> on_token;  // false: that is enough
  std::function<void(const GenerationResult&)> on_done;

  // Any thread: the slot is free again before the next token.
  void cancel() { cancelled.store(true, std::memory_order_relaxed); }
  std::atomic<bool> cancelled{false};
};

}  // namespace stoker
