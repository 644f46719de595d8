// What tests ask of an engine again and again.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "runtime/engine.h"

namespace stoker::test {

// Options for small models: everything explicit, so that a test says only what it is about.
EngineOptions small_engine(const std::string& model_path);

// Logits after every token, [tokens, vocab], of sequence `id` from its beginning, fed in chunks of `chunk` rows.
// Throws when a pass fails.
std::vector<f32> logits_of(Engine& engine, std::span<const i32> tokens, i64 chunk, SequenceId id = SequenceId(0),
                           RowRole role = RowRole::prompt);
// The same one by one, as if each token had been sampled.
std::vector<f32> generated_logits_of(Engine& engine, std::span<const i32> tokens);
// The same with a new engine and in one piece.
std::vector<f32> logits_of(const EngineOptions& options, std::span<const i32> tokens);

// The `count` most likely next tokens, one after the other; fewer when the text ends.
std::vector<i32> greedy(Engine& engine, std::span<const i32> prompt, i64 count);

// `count` token ids below `vocab`, the same for the same seed.
std::vector<i32> some_tokens(i64 count, i64 vocab, u64 seed);

}  // namespace stoker::test
