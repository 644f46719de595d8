// Batcher: several generations at a time on one engine. Requests come from any thread; one thread of its own loads the
// engine and computes. A step is one row for each generation that is past its prompt, together in one pass, and one
// chunk of one prompt in a pass of its own. A chunk can take many times as long as a row, so rows are also computed
// inside it, between the steps of its layers, as often as gives both the same time: a long prompt does not silence the
// others.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "kernels/base/stats.h"
#include "runtime/batch_slot.h"
#include "runtime/engine.h"
#include "runtime/generation.h"
#include "runtime/latency_histogram.h"
#include "scheduler/scheduler.h"

namespace stoker {

// Sums since the start, and the state after the last step.
struct BatcherStatus {
  struct Slot {
    bool busy = false, prompting = false;
    i64 held = 0;
    GenerationResult result;  // of the running or the last generation
  };
  std::vector<Slot> slots;
  i64 waiting = 0;
  i64 prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;  // of generations that have ended
  f64 prompt_seconds = 0, generate_seconds = 0;
  i64 decode_passes = 0, decode_rows = 0;  // as they are computed, like the next ones
  i64 prompt_rows = 0;
  LatencyHistogram token_gaps;  // between two tokens of a sequence
  std::array<i64, kStages> stage_ns{};
  i64 most_held = 0;  // longest sequence so far
  i64 failures = 0;
  Scheduler::Warmth warmth;  // how far experts that fit have been read, when that goes on beside the work
  SchedulerStats experts;
  i64 experts_on_devices = 0;
  EngineFootprint footprint;
  Governor::State prefetch = Governor::State::fixed_off;
  f64 prefetch_gain = 0;  // see Governor::gain()
};

class Batcher {
 public:
  using Load = std::function<std::unique_ptr<Engine>()>;

  // Calls `load` on the new thread, because an engine belongs to the thread that makes it, and waits for it; throws
  // what it throws. There is a slot for each of the engine's sequences; `queue` more generations may wait.
  Batcher(const Load& load, i64 queue);
  // Cancels what runs and waits.
  ~Batcher();
  // Cancels what runs and what waits, and takes no more. Any thread.
  void stop();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Only what does not change while it computes: options, hparams, tokenizer, gguf.
  const Engine& engine() const { return *engine_; }
  i64 slots() const;
  i64 capacity() const { return slots() + queue_; }

  // All or none: false when so many cannot wait. Throws Error for a prompt that is empty, longer than the context, or
  // has ids outside the vocabulary, and for a slot that there is not.
  bool submit(std::span<const std::shared_ptr<Generation>> generations);

  // Calls `work` on the calling thread with slot `index`, when that is idle; no generation gets it meanwhile. False: the
  // batcher stops instead. What `work` throws comes through. Any thread but the engine's.
  bool with_slot(i64 index, const std::function<void(BatchSlot&)>& work);

  BatcherStatus status() const;  // any thread

  // Where every expert is, as the engine thread sees it at the next border between two steps; the last view that was
  // made when that takes longer than `milliseconds`, null when there is none. Any thread. Unasked, none is made.
  std::shared_ptr<const ResidencyView> residency(int milliseconds);

 private:
  void run(const Load& load);
  void work();
  bool wait_for_work();
  bool warming() const { return state_.warmth.done < state_.warmth.total; }
  void admit();
  void lend();
  bool is_lent(size_t index) const;
  bool has_slot_for(const Generation& generation) const;
  std::shared_ptr<Generation> take_waiting();
  BatchSlot& choose_slot(const Generation& generation);
  void turn_over_slots();
  void end_cancelled();
  void step_prompt();
  void inside_prompt();
  void step_decode();
  void decode(std::span<BatchSlot* const> slots);
  void take_logits(std::span<BatchSlot* const> slots, std::span<const f32> logits);
  void publish();
  void show_residency();
  void warm();
  void account(BatchSlot& slot);
  void end_all();
  void check(const Generation& generation) const;

  const i64 queue_;
  std::unique_ptr<Engine> engine_;  // lives on the engine thread

  // The engine thread's.
  std::vector<BatchSlot> slots_;
  std::vector<f32> logits_;  // [slots, vocab]
  std::vector<BatchRow> rows_;
  std::vector<i64> last_token_ns_;  // [rows]
  size_t next_prompt_ = 0;
  BatchSlot* prompt_ = nullptr;          // whose chunk is being computed
  i64 decoded_ns_ = 0, decode_ns_ = 0;   // when the last rows were computed, and how long that took
  BatcherStatus state_;

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool loaded_ = false, stopping_ = false;
  std::exception_ptr load_failure_;
  std::deque<std::shared_ptr<Generation>> waiting_;
  i64 active_ = 0;  // slots taken by generations
  // Slots that somebody else than the engine thread uses, or will when they are idle.
  struct Loan {
    i64 wanted = 0;  // callers that wait
    bool granted = false;
    bool taken = false;  // by the one whom it was granted
  };
  std::vector<Loan> loans_;
  i64 lent_ = 0;  // granted
  bool returned_ = false;
  BatcherStatus published_;
  std::shared_ptr<const ResidencyView> view_;
  u64 views_wanted_ = 0, views_made_ = 0;

  std::thread thread_;
};

}  // namespace stoker
