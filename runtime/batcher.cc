#include "runtime/batcher.h"

#include <algorithm>
#include <chrono>

#include "kernels/base/clock.h"
#include "runtime/engine.h"

namespace stoker {

namespace {

// What a prompt gets at least between two tokens of the others. Models whose rows take less than that would go back and
// forth after every step, and a stream's tokens would come as unevenly as steps are long.
constexpr i64 kPromptTurnNs = 3'000'000;

constexpr std::chrono::milliseconds kWarmTick(1);  // between two looks at the drive while nothing else is to do

}  // namespace

Batcher::Batcher(const Load& load, i64 queue) : queue_(queue) {
  thread_ = std::thread([this, &load] { run(load); });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return loaded_ || load_failure_; });
  if (!load_failure_) return;
  lock.unlock();
  thread_.join();
  std::rethrow_exception(load_failure_);
}

Batcher::~Batcher() {
  stop();
  thread_.join();
}

void Batcher::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    for (const auto& generation : waiting_) generation->cancel();
  }
  changed_.notify_all();
}

i64 Batcher::slots() const { return engine_->options().sequences; }

BatcherStatus Batcher::status() const {
  std::lock_guard lock(mutex_);
  BatcherStatus status = published_;
  status.waiting = static_cast<i64>(waiting_.size());
  return status;
}

std::shared_ptr<const ResidencyView> Batcher::residency(int milliseconds) {
  std::unique_lock lock(mutex_);
  u64 mine = ++views_wanted_;
  changed_.notify_all();
  changed_.wait_for(lock, std::chrono::milliseconds(milliseconds), [&] { return views_made_ >= mine || stopping_; });
  return view_;
}

bool Batcher::with_slot(i64 index, const std::function<void(BatchSlot&)>& work) {
  Loan& loan = loans_[static_cast<size_t>(index)];
  {
    std::unique_lock lock(mutex_);
    loan.wanted++;
    changed_.notify_all();
    changed_.wait(lock, [&] { return stopping_ || (loan.granted && !loan.taken); });
    loan.wanted--;
    if (stopping_) return false;
    loan.taken = true;
  }
  std::exception_ptr failure;
  try {
    work(slots_[static_cast<size_t>(index)]);
  } catch (...) {
    failure = std::current_exception();
  }
  {
    std::lock_guard lock(mutex_);
    loan.granted = loan.taken = false;
    lent_--;
    returned_ = true;
  }
  changed_.notify_all();
  if (failure) std::rethrow_exception(failure);
  return true;
}

void Batcher::check(const Generation& g) const {
  i64 tokens = static_cast<i64>(g.prompt.size()), context = engine_->options().context;
  if (tokens == 0) fail("the prompt is empty");
  if (tokens > context)
    fail("the prompt has {} tokens, more than the context of {}; shorten it, or start with a larger -c", tokens, context);
  if (g.slot >= slots()) fail("slot {}: there are slots 0 to {}", g.slot, slots() - 1);
  for (i32 token : g.prompt)
    if (token < 0 || token >= engine_->hparams().vocab)
      fail("token {} is not one of the model's {} tokens", token, engine_->hparams().vocab);
}

bool Batcher::submit(std::span<const std::shared_ptr<Generation>> generations) {
  for (const auto& generation : generations) check(*generation);
  {
    std::lock_guard lock(mutex_);
    i64 all = active_ + static_cast<i64>(waiting_.size() + generations.size());
    if (all > capacity() || stopping_) return false;
    waiting_.insert(waiting_.end(), generations.begin(), generations.end());
  }
  changed_.notify_all();
  return true;
}

// --- the engine thread ------------------------------------------------------------------------------------------

void Batcher::run(const Load& load) {
  try {
    engine_ = load();
    i64 count = engine_->options().sequences;
    for (i64 i = 0; i < count; i++) slots_.emplace_back(*engine_, SequenceId(i));
    loans_.resize(static_cast<size_t>(count));
    logits_.resize(static_cast<size_t>(count * engine_->hparams().vocab));
    state_.warmth = engine_->warm();
    publish();
  } catch (...) {
    // Here, on the thread that it belongs to.
    slots_.clear();
    engine_.reset();
    std::lock_guard lock(mutex_);
    load_failure_ = std::current_exception();
    changed_.notify_all();
    return;
  }
  {
    std::lock_guard lock(mutex_);
    loaded_ = true;
  }
  changed_.notify_all();
  work();
  slots_.clear();
  engine_.reset();
}

void Batcher::work() {
  while (wait_for_work()) {
    turn_over_slots();
    step_prompt();
    step_decode();
    warm();
    publish();
    show_residency();
  }
  end_all();
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return std::none_of(loans_.begin(), loans_.end(), [](const Loan& loan) { return loan.taken; }); });
  }
  publish();
}

bool Batcher::wait_for_work() {
  std::unique_lock lock(mutex_);
  auto ready = [&] {
    bool wanted = std::any_of(loans_.begin(), loans_.end(), [](const Loan& loan) { return loan.wanted > 0 && !loan.granted; });
    bool waiting = std::any_of(waiting_.begin(), waiting_.end(), [&](const auto& g) { return g->cancelled.load() || has_slot_for(*g); });
    return stopping_ || active_ > 0 || waiting || wanted || returned_ || views_wanted_ > views_made_;
  };
  if (warming())
    changed_.wait_for(lock, kWarmTick, ready);
  else
    changed_.wait(lock, ready);
  returned_ = false;
  return !stopping_;
}

// The next one in line for which there is a slot, counted as active; ends those that are not wanted any more. Null:
// there is none.
std::shared_ptr<Generation> Batcher::take_waiting() {
  while (true) {
    std::shared_ptr<Generation> next;
    bool wanted = true;
    {
      std::lock_guard lock(mutex_);
      auto taken = std::find_if(waiting_.begin(), waiting_.end(), [](const auto& g) { return g->cancelled.load(); });
      wanted = taken == waiting_.end();
      if (wanted) taken = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& g) { return has_slot_for(*g); });
      if (taken == waiting_.end()) return nullptr;
      next = std::move(*taken);
      waiting_.erase(taken);
      if (wanted) active_++;
    }
    if (wanted) return next;
    GenerationResult result;
    result.end = GenerationEnd::cancelled;
    if (next->on_done) next->on_done(result);
  }
}

// Idle slots to those who asked for them, before a generation gets them.
void Batcher::lend() {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < slots_.size(); i++) {
    Loan& loan = loans_[i];
    if (loan.wanted == 0 || loan.granted || slots_[i].busy()) continue;
    loan.granted = true;
    lent_++;
    changed_.notify_all();
  }
}

// Under the lock. One that wants a certain slot is passed by others while that is taken.
bool Batcher::has_slot_for(const Generation& generation) const {
  if (generation.slot < 0) return active_ + lent_ < static_cast<i64>(slots_.size());
  size_t index = static_cast<size_t>(generation.slot);
  return !slots_[index].busy() && !loans_[index].granted;
}

bool Batcher::is_lent(size_t index) const {
  std::lock_guard lock(mutex_);
  return loans_[index].granted;
}

void Batcher::admit() {
  while (std::shared_ptr<Generation> next = take_waiting()) {
    BatchSlot& slot = choose_slot(*next);
    slot.begin(std::move(next));
  }
}

// The one it asks for, which take_waiting has found free; else the free slot that has most of the prompt; among equals the one that was used longest ago.
BatchSlot& Batcher::choose_slot(const Generation& generation) {
  if (generation.slot >= 0) return slots_[static_cast<size_t>(generation.slot)];
  BatchSlot* best = nullptr;
  i64 best_common = -1;
  for (size_t i = 0; i < slots_.size(); i++) {
    BatchSlot& slot = slots_[i];
    if (slot.busy() || is_lent(i)) continue;
    i64 common = generation.reuse_prefix ? slot.common_prefix(generation.prompt) : 0;
    if (common < best_common || (common == best_common && slot.last_used_ns() >= best->last_used_ns())) continue;
    best = &slot;
    best_common = common;
  }
  return *best;
}

// Also inside a prompt's pass, so that nobody waits for its end to be rid of a slot or to get one.
void Batcher::turn_over_slots() {
  end_cancelled();
  lend();
  admit();
}

void Batcher::end_cancelled() {
  for (BatchSlot& slot : slots_) {
    if (!slot.cancelled() || &slot == prompt_) continue;  // the pass sees it and ends first
    slot.end(GenerationEnd::cancelled);
    account(slot);
  }
}

void Batcher::step_prompt() {
  for (size_t i = 0; i < slots_.size(); i++) {
    size_t index = (next_prompt_ + i) % slots_.size();
    BatchSlot& slot = slots_[index];
    if (!slot.prompting()) continue;
    next_prompt_ = index + 1;  // prompts take turns: a short one does not wait for a long one's end
    i64 held = slot.held();
    std::function<void()> between;
    if (engine_->has_between()) between = [this] { inside_prompt(); };
    prompt_ = &slot;
    slot.feed_prompt(std::span(logits_).first(static_cast<size_t>(engine_->hparams().vocab)), between);
    prompt_ = nullptr;
    state_.prompt_rows += slot.held() - held;
    if (!slot.busy()) account(slot);
    end_cancelled();
    return;
  }
}

void Batcher::inside_prompt() {
  turn_over_slots();
  if (steady_clock().now_ns() - decoded_ns_ < std::max(decode_ns_, kPromptTurnNs)) return;
  step_decode();
  warm();
  publish();
  show_residency();
}

void Batcher::step_decode() {
  std::vector<BatchSlot*> ready;
  for (BatchSlot& slot : slots_)
    if (slot.generating() && !slot.cancelled()) ready.push_back(&slot);
  if (ready.empty()) return;
  i64 begin = steady_clock().now_ns();
  size_t most = static_cast<size_t>(engine_->options().chunk);
  for (size_t at = 0; at < ready.size(); at += most)
    decode(std::span(ready).subspan(at, std::min(most, ready.size() - at)));
  decoded_ns_ = steady_clock().now_ns();
  decode_ns_ = decoded_ns_ - begin;
}

// A failed pass leaves the caches as they were: the rows are tried again one by one, so that only the sequence which
// wants the unreadable expert ends.
void Batcher::decode(std::span<BatchSlot* const> slots) {
  size_t vocab = static_cast<size_t>(engine_->hparams().vocab);
  rows_.clear();
  for (BatchSlot* slot : slots) rows_.push_back(slot->next_row());
  std::span<f32> logits = std::span(logits_).first(slots.size() * vocab);
  Status status = prompt_ != nullptr ? engine_->forward_between(rows_, logits) : engine_->forward(rows_, logits);
  if (!status.ok() && slots.size() > 1) {
    for (size_t i = 0; i < slots.size(); i++) decode(slots.subspan(i, 1));
    return;
  }
  state_.decode_passes++;
  state_.decode_rows += static_cast<i64>(slots.size());
  if (status.ok()) {
    take_logits(slots, logits);
  } else {
    slots[0]->fail(status);
  }
  for (BatchSlot* slot : slots)
    if (!slot->busy()) account(*slot);
}

// Each sequence has its own sampler, grammar and text, so that the workers share the rows.
void Batcher::take_logits(std::span<BatchSlot* const> slots, std::span<const f32> logits) {
  size_t vocab = logits.size() / slots.size();
  last_token_ns_.clear();
  for (const BatchSlot* slot : slots) last_token_ns_.push_back(slot->last_used_ns());
  auto take = [&](i64 row) {
    size_t i = static_cast<size_t>(row);
    slots[i]->computed(logits.subspan(i * vocab, vocab));
  };
  if (slots.size() == 1) {
    take(0);
  } else {
    engine_->for_each(static_cast<i64>(slots.size()), take);
  }
  for (size_t i = 0; i < slots.size(); i++)
    state_.token_gaps.add(static_cast<f64>(slots[i]->last_used_ns() - last_token_ns_[i]) / 1e9);
}

// After a generation's end: the sums, the slot is free, and its client hears of it.
void Batcher::account(BatchSlot& slot) {
  const GenerationResult& r = slot.result();
  state_.prompt_tokens += r.prompt_tokens - r.cached_tokens;
  state_.cached_tokens += r.cached_tokens;
  state_.generated_tokens += r.generated_tokens;
  state_.prompt_seconds += r.prompt_seconds;
  state_.generate_seconds += r.generate_seconds;
  if (r.end == GenerationEnd::failed) state_.failures++;
  {
    std::lock_guard lock(mutex_);
    active_--;
  }
  publish();
  slot.announce();
}

void Batcher::publish() {
  state_.slots.resize(slots_.size());
  for (size_t i = 0; i < slots_.size(); i++) {
    const BatchSlot& slot = slots_[i];
    if (is_lent(i)) continue;  // as it was before
    state_.most_held = std::max(state_.most_held, slot.held());
    state_.slots[i] = {.busy = slot.busy(), .prompting = slot.prompting(), .held = slot.held(), .result = slot.result()};
  }
  state_.experts = engine_->scheduler_stats();
  state_.experts_on_devices = engine_->experts_on_devices();
  state_.footprint = engine_->footprint();
  state_.stage_ns = engine_->timer().all_ns();
  state_.prefetch = engine_->governor().state();
  state_.prefetch_gain = engine_->governor().gain();
  std::lock_guard lock(mutex_);
  published_ = state_;
}

// At borders between steps, where no lease exists. A model that streams keeps the drive for what its tokens want.
void Batcher::warm() {
  auto busy = [](const BatchSlot& slot) { return slot.busy(); };
  if (!warming() || (!engine_->plan().all_resident && std::any_of(slots_.begin(), slots_.end(), busy))) return;
  state_.warmth = engine_->warm();
}

void Batcher::show_residency() {
  u64 wanted = 0;
  {
    std::lock_guard lock(mutex_);
    wanted = views_wanted_;
    if (wanted == views_made_) return;
  }
  auto view = std::make_shared<const ResidencyView>(engine_->residency());
  {
    std::lock_guard lock(mutex_);
    view_ = std::move(view);
    views_made_ = wanted;
  }
  changed_.notify_all();
}

void Batcher::end_all() {
  for (BatchSlot& slot : slots_) {
    if (!slot.busy()) continue;
    slot.end(GenerationEnd::cancelled);
    account(slot);
  }
  take_waiting();  // all were cancelled when stopping began
}

}  // namespace stoker
