// PassBreaks: what may happen inside a pass. A chunk of a prompt takes many times as long as a row, so between its
// steps (a few heads of attention, a product, a group of experts) rows of other sequences are computed, and one that
// nobody wants any more is given up. Owner: the engine thread.
#pragma once

#include <atomic>
#include <functional>

#include "kernels/base/stats.h"
#include "scheduler/scheduler.h"

namespace stoker {

class PassBreaks {
 public:
  // All must outlive it. `interrupt` may be null; `between` may be empty, else it may run another Forward on the same
  // timer and scheduler, for other sequences. `reads`: the scheduler whose reads must go on meanwhile, or none.
  PassBreaks(StageTimer& timer, const std::atomic<bool>* interrupt, const std::function<void()>& between,
             Scheduler* reads = nullptr)
      : timer_(timer), interrupt_(interrupt), between_(between), reads_(reads) {}

  // Whether steps should be small.
  bool wanted() const { return static_cast<bool>(between_); }
  // Whether they should not be long.
  bool reads() const { return reads_ != nullptr; }
  bool interrupted() const { return interrupt_ != nullptr && interrupt_->load(std::memory_order_relaxed); }

  // Between two steps; no lease may exist. The timer goes on with the stage that it was in. False: interrupted.
  bool pause() {
    if (interrupted()) return false;
    if (reads_ != nullptr) reads_->tend();
    if (!between_) return true;
    Stage stage = timer_.stage();
    timer_.stop();
    between_();
    timer_.start(stage);
    return !interrupted();
  }

 private:
  StageTimer& timer_;
  const std::atomic<bool>* interrupt_;
  const std::function<void()>& between_;
  Scheduler* reads_;
};

}  // namespace stoker
