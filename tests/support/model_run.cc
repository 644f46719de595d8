#include "tests/support/model_run.h"

#include <algorithm>
#include <stdexcept>

#include "kernels/base/rng.h"
#include "runtime/sampler.h"
#include "runtime/session.h"

namespace stoker::test {

EngineOptions small_engine(const std::string& model_path) {
  EngineOptions options;
  options.model_path = model_path;
  options.ram_bytes = kGiB;
  options.context = 256;
  options.chunk = 64;
  options.threads = 1;
  return options;
}

std::vector<f32> logits_of(Engine& engine, std::span<const i32> tokens, i64 chunk, SequenceId id, RowRole role) {
  size_t vocab = static_cast<size_t>(engine.hparams().vocab);
  std::vector<f32> logits(tokens.size() * vocab);
  engine.sequence(id).truncate(0);
  for (size_t done = 0; done < tokens.size();) {
    size_t count = std::min(static_cast<size_t>(chunk), tokens.size() - done);
    std::vector<BatchRow> rows;
    for (size_t i = done; i < done + count; i++) rows.push_back({id, static_cast<i32>(i), tokens[i], true, role});
    Status status = engine.forward(rows, std::span(logits).subspan(done * vocab, count * vocab));
    if (!status.ok()) throw std::runtime_error(status.message());
    done += count;
  }
  return logits;
}

std::vector<f32> generated_logits_of(Engine& engine, std::span<const i32> tokens) {
  return logits_of(engine, tokens, 1, SequenceId(0), RowRole::generated);
}

std::vector<f32> logits_of(const EngineOptions& options, std::span<const i32> tokens) {
  Engine engine(options);
  return logits_of(engine, tokens, engine.options().chunk);
}

std::vector<i32> greedy(Engine& engine, std::span<const i32> prompt, i64 count) {
  Session session(engine, SequenceId(0));
  Sampler sampler({.temperature = 0}, engine.hparams().vocab);
  Status status = session.prompt(prompt);
  if (!status.ok()) throw std::runtime_error(status.message());
  std::vector<i32> tokens;
  GenerateResult result = session.generate(count, sampler, [&](i32 token) {
    tokens.push_back(token);
    return true;
  });
  if (!result.status.ok()) throw std::runtime_error(result.status.message());
  return tokens;
}

std::vector<i32> some_tokens(i64 count, i64 vocab, u64 seed) {
  Rng rng(seed);
  std::vector<i32> tokens(static_cast<size_t>(count));
  for (i32& token : tokens) token = static_cast<i32>(rng.below(vocab));
  return tokens;
}

}  // namespace stoker::test
