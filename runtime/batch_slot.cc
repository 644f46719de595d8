#include "runtime/batch_slot.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/base/clock.h"
#include "runtime/engine.h"

namespace stoker {

namespace {

f64 seconds_between(i64 from_ns, i64 to_ns) { return static_cast<f64>(to_ns - from_ns) / 1e9; }

// The one place that says what kind of row a batch has.
BatchRow make_row(SequenceId sequence, i64 position, i32 token, bool logits, RowRole role) {
  return {.sequence = sequence, .position = static_cast<i32>(position), .token = token, .logits = logits, .role = role};
}

}  // namespace

GeneratedToken with_logprobs(std::span<const f32> logits, i32 token, i64 count) {
  f64 best = *std::max_element(logits.begin(), logits.end());
  f64 sum = 0;
  for (f32 logit : logits) sum += std::exp(logit - best);
  f64 log_sum = best + std::log(sum);
  auto logprob = [&](i32 id) { return static_cast<f32>(logits[static_cast<size_t>(id)] - log_sum); };

  std::vector<i32> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  auto keep = ids.begin() + std::min<i64>(count, static_cast<i64>(ids.size()));
  std::partial_sort(ids.begin(), keep, ids.end(), [&](i32 a, i32 b) {
    f32 x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x > y || (x == y && a < b);
  });
  GeneratedToken result{.token = token, .logprob = logprob(token), .top = {}};
  for (auto id = ids.begin(); id != keep; ++id) result.top.push_back({*id, logprob(*id)});
  return result;
}

BatchSlot::BatchSlot(Engine& engine, SequenceId sequence) : engine_(engine), sequence_(sequence) {
  tokens_.reserve(static_cast<size_t>(engine.options().context) + 1);
  rows_.reserve(static_cast<size_t>(engine.options().chunk));
}

i64 BatchSlot::common_prefix(std::span<const i32> prompt) const {
  i64 common = std::mismatch(prompt.begin(), prompt.end(), tokens_.begin(), tokens_.end()).first - prompt.begin();
  // The logits come from computing the last token, so one is always left.
  common = std::min(common, static_cast<i64>(prompt.size()) - 1);
  return common < kShortestReuse ? 0 : common;
}

KvCache& BatchSlot::cache() const { return engine_.sequence(sequence_); }

void BatchSlot::set_tokens(std::vector<i32> tokens) {
  CHECK(!busy());
  cache().truncate(static_cast<i64>(tokens.size()));
  tokens_.assign(tokens.begin(), tokens.end());  // keeps the memory that was reserved
  last_used_ns_ = tokens_.empty() ? 0 : steady_clock().now_ns();  // an empty one is the first to be used
}

void BatchSlot::begin(std::shared_ptr<Generation> generation) {
  CHECK(!busy());
  generation_ = std::move(generation);
  sampler_.emplace(generation_->sampler, engine_.hparams().vocab);
  i64 kept = generation_->reuse_prefix ? common_prefix(generation_->prompt) : 0;
  tokens_.resize(static_cast<size_t>(kept));
  engine_.sequence(sequence_).truncate(kept);
  result_ = {};
  result_.slot = sequence_.value;
  result_.prompt_tokens = prompt_size();
  result_.cached_tokens = kept;
  begun_ns_ = last_used_ns_ = steady_clock().now_ns();
  first_logits_ns_ = 0;
  hits_before_ = engine_.scheduler_stats().hits;
  misses_before_ = engine_.scheduler_stats().misses;
}

void BatchSlot::feed_prompt(std::span<f32> logits, const std::function<void()>& between) {
  i64 chunk = engine_.options().chunk;
  i64 begin = fed();
  i64 end = std::min(prompt_size(), (begin / chunk + 1) * chunk);
  bool last = end == prompt_size();
  rows_.clear();
  for (i64 i = begin; i < end; i++)
    rows_.push_back(make_row(sequence_, i, generation_->prompt[static_cast<size_t>(i)], last && i + 1 == end,
                             RowRole::prompt));
  Status status = engine_.forward(rows_, last ? logits : std::span<f32>(), &generation_->cancelled, between);
  if (!status.ok()) {
    if (!cancelled()) fail(status);
    return;
  }
  tokens_.insert(tokens_.end(), generation_->prompt.begin() + begin, generation_->prompt.begin() + end);
  note_time();
  if (last && !cancelled()) sample(logits);
}

BatchRow BatchSlot::next_row() const { return make_row(sequence_, held(), *pending_, true, RowRole::generated); }

void BatchSlot::computed(std::span<const f32> logits) {
  tokens_.push_back(*pending_);
  sample(logits);
}

// From logits to the next pending token, or to the end.
void BatchSlot::sample(std::span<const f32> logits) {
  const Generation& g = *generation_;
  if (first_logits_ns_ == 0) first_logits_ns_ = steady_clock().now_ns();
  if (g.max_tokens == 0) return end(GenerationEnd::length);
  i32 token = 0;
  try {
    token = sampler_->sample(logits, tokens_, g.filter.get());
    if (g.filter && !g.filter->accept(token))
      stoker::fail("no token that the grammar allows is left: logit_bias, or logits that are no numbers, forbid them all");
  } catch (const Error& e) {
    return fail(Status::failure(e.what()));
  }
  if (engine_.is_end(token)) return end(GenerationEnd::end_of_text);
  result_.generated_tokens++;
  bool goes_on = true;
  try {
    goes_on = !g.on_token || g.on_token(g.top_logprobs < 0 ? GeneratedToken{.token = token, .logprob = 0, .top = {}}
                                                           : with_logprobs(logits, token, g.top_logprobs));
  } catch (const std::exception& e) {
    return fail(Status::failure(e.what()));  // this request's trouble, not the others'
  }
  note_time();
  if (!goes_on) return end(GenerationEnd::stopped);
  if (g.filter && g.filter->finished()) return end(GenerationEnd::end_of_text);
  if (result_.generated_tokens == g.max_tokens) return end(GenerationEnd::length);
  if (held() >= engine_.options().context) return end(GenerationEnd::context_full);
  pending_ = token;
}

void BatchSlot::note_time() {
  i64 now = last_used_ns_ = steady_clock().now_ns();
  result_.prompt_seconds = seconds_between(begun_ns_, first_logits_ns_ == 0 ? now : first_logits_ns_);
  if (first_logits_ns_ != 0) result_.generate_seconds = seconds_between(first_logits_ns_, now);
  result_.expert_hits = engine_.scheduler_stats().hits - hits_before_;
  result_.expert_misses = engine_.scheduler_stats().misses - misses_before_;
}

void BatchSlot::fail(const Status& status) {
  result_.status = status;
  end(GenerationEnd::failed);
}

void BatchSlot::end(GenerationEnd reason) {
  note_time();
  result_.end = reason;
  pending_.reset();
  ended_ = std::move(generation_);
  generation_ = nullptr;
}

void BatchSlot::announce() {
  if (ended_->on_done) ended_->on_done(result_);
  ended_ = nullptr;
}

}  // namespace stoker
