// Session: one sequence of an engine, fed with prompts and asked for continuations. The boundary at which a failing
// request ends with a message while the engine lives on. Owner: the engine's thread.
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/ids.h"
#include "runtime/forward.h"
#include "runtime/sampler.h"

namespace stoker {

class Engine;

enum class StopReason { end_of_text, length, context_full, interrupted, failed };

struct GenerateResult {
  StopReason reason = StopReason::length;
  i64 tokens = 0;
  Status status;  // the failure when reason is failed
};

class Session {
 public:
  Session(Engine& engine, SequenceId sequence);

  // The tokens that the KV cache holds. A token sampled last is not among them until the next one is computed.
  const std::vector<i32>& tokens() const { return tokens_; }

  // Appends tokens in chunks of at most the engine's chunk, calling progress(done, total) after each. Stops when
  // *interrupt is set (status ok; finished chunks are kept). More tokens than the context has room for, or ids outside
  // the vocabulary: failure, nothing is appended.
  Status prompt(std::span<const i32> tokens, const std::atomic<bool>* interrupt = nullptr,
                const std::function<void(i64 done, i64 total)>& progress = {});

  // Samples until end of text, `max_tokens` (-1: no limit), a full context or an interrupt. on_token gets each token
  // before it is computed; returning false stops (reason interrupted).
  GenerateResult generate(i64 max_tokens, Sampler& sampler, const std::function<bool(i32 token)>& on_token,
                          const std::atomic<bool>* interrupt = nullptr);

  // Forgets everything from position `length` on.
  void truncate(i64 length);

  // FNV-1a over the bits of every logit vector that was sampled from: equal runs have equal hashes.
  u64 logits_hash() const { return logits_hash_; }
  std::span<const f32> logits() const { return logits_; }  // [vocab] after the last token

 private:
  Status compute(std::span<const i32> tokens, RowRole role, const std::atomic<bool>* interrupt);

  Engine& engine_;
  SequenceId sequence_;
  std::vector<i32> tokens_;
  std::vector<BatchRow> rows_;  // of the pass being computed
  std::vector<f32> logits_;
  bool have_logits_ = false;
  u64 logits_hash_ = 0xcbf29ce484222325u;
};

}  // namespace stoker
