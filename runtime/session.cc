#include "runtime/session.h"

#include <algorithm>
#include <cstring>

#include "runtime/engine.h"

namespace stoker {

static bool is_set(const std::atomic<bool>* flag) {
  return flag != nullptr && flag->load(std::memory_order_relaxed);
}

static u64 fnv1a(u64 hash, std::span<const f32> values) {
  for (f32 value : values) {
    u32 bits;
    std::memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * 0x100000001b3u;
  }
  return hash;
}

Session::Session(Engine& engine, SequenceId sequence)
    : engine_(engine), sequence_(sequence), logits_(static_cast<size_t>(engine.hparams().vocab)) {
  tokens_.reserve(static_cast<size_t>(engine.options().context) + 1);
  rows_.reserve(static_cast<size_t>(engine.options().chunk));
  engine_.sequence(sequence).truncate(0);
}

// One forward pass over `tokens`, which follow what the cache holds. Logits of the last one.
Status Session::compute(std::span<const i32> tokens, RowRole role, const std::atomic<bool>* interrupt) {
  rows_.clear();
  i64 position = engine_.sequence(sequence_).length();
  for (i32 token : tokens) rows_.push_back({sequence_, static_cast<i32>(position++), token, false, role});
  rows_.back().logits = true;
  return engine_.forward(rows_, logits_, interrupt);
}

Status Session::prompt(std::span<const i32> tokens, const std::atomic<bool>* interrupt,
                       const std::function<void(i64, i64)>& progress) {
  i64 total = static_cast<i64>(tokens.size());
  i64 room = engine_.options().context - static_cast<i64>(tokens_.size());
  if (total > room)
    return Status::failure(fmt::format(
        "the prompt has {} tokens, but only {} of the context's {} are free; raise -c or shorten the prompt", total,
        room, engine_.options().context));
  for (i32 token : tokens)
    if (token < 0 || token >= engine_.hparams().vocab)
      return Status::failure(
          fmt::format("token {} is not one of the model's {} tokens", token, engine_.hparams().vocab));
  for (i64 done = 0; done < total && !is_set(interrupt);) {
    i64 count = std::min(engine_.options().chunk, total - done);
    std::span<const i32> chunk = tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(count));
    Status status = compute(chunk, RowRole::prompt, interrupt);
    if (!status.ok()) return is_set(interrupt) ? Status() : status;
    tokens_.insert(tokens_.end(), chunk.begin(), chunk.end());
    have_logits_ = true;
    done += count;
    if (progress) progress(done, total);
  }
  return {};
}

GenerateResult Session::generate(i64 max_tokens, Sampler& sampler, const std::function<bool(i32)>& on_token,
                                 const std::atomic<bool>* interrupt) {
  GenerateResult result;
  if (!have_logits_) {
    result.reason = is_set(interrupt) ? StopReason::interrupted : StopReason::failed;
    if (result.reason == StopReason::failed) result.status = Status::failure("there is no prompt to continue");
    return result;
  }
  while (max_tokens < 0 || result.tokens < max_tokens) {
    auto stop = [&](StopReason reason) {
      result.reason = reason;
      return result;
    };
    if (is_set(interrupt)) return stop(StopReason::interrupted);
    logits_hash_ = fnv1a(logits_hash_, logits_);
    i32 token = sampler.sample(logits_, tokens_);
    if (engine_.is_end(token)) return stop(StopReason::end_of_text);
    result.tokens++;
    if (!on_token(token)) return stop(StopReason::interrupted);
    if (result.tokens == max_tokens) break;
    if (static_cast<i64>(tokens_.size()) >= engine_.options().context) return stop(StopReason::context_full);
    Status status = compute({&token, 1}, RowRole::generated, interrupt);
    if (!status.ok()) {
      if (is_set(interrupt)) return stop(StopReason::interrupted);
      result.status = status;
      return stop(StopReason::failed);
    }
    tokens_.push_back(token);
  }
  result.reason = StopReason::length;
  return result;
}

void Session::truncate(i64 length) {
  if (length >= static_cast<i64>(tokens_.size())) return;
  tokens_.resize(static_cast<size_t>(length));
  engine_.sequence(sequence_).truncate(length);
  have_logits_ = false;
}

}  // namespace stoker
