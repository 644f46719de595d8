// Governor: whether reading ahead pays, and how sure a prediction must be. On a drive that is busy anyway a read that
// nobody wants in the end costs as much as a miss, so prefetch must earn its place: a window of tokens with it is compared
// with one without. Both are made of short turns, in the order on, off, off, on (a drift in speed cancels out, and so does what
// the text wants), and what they show, together with half of what was known before, decides for the next windows. A verdict is
// tried again now and then, less often with time. Meanwhile the least probability and the number of layers to look ahead follow
// the drive: an idle one whose guesses were wanted is given less likely and earlier ones.
//
// Pure: no clock; the same passes always give the same decisions. Owner: the scheduler's thread.
#pragma once

#include "kernels/base/types.h"

namespace stoker {

enum class PrefetchMode : u8 { off, on, automatic };

struct GovernorOptions {
  PrefetchMode mode = PrefetchMode::automatic;
  i64 window_tokens = 64;   // of a measurement with prefetch, and of one without
  f64 least_gain = 0.01;    // in tokens per second, below which automatic prefetch does not pay
  f32 threshold = 0;        // least probability worth a read; 0: found while running
  i64 farthest = 3;         // layers ahead of which hints are read
};

// One decode pass.
struct GovernorPass {
  i64 tokens = 0;
  i64 ns = 0;
  i64 disk_busy_ns = 0;     // of these, with reads in flight
  i64 predicted_bytes = 0;  // read because of predictions
  i64 useful_bytes = 0;     // of such bytes, that turned out to be wanted
};

class Governor {
 public:
  static constexpr i64 kFarthest = 3;  // layers ahead that are worth a guess

  enum class State : u8 { fixed_off, fixed_on, measuring, paying, not_paying };
  enum class Verdict : u8 { none, on, off };

  explicit Governor(const GovernorOptions& options);

  // What the last pass showed. A verdict when this pass ended a comparison.
  Verdict observe(const GovernorPass& pass);

  bool prefetching() const;
  // Whether looking ahead is worth its time: also when prefetch is off for good, since what is expected is kept.
  bool wants_forecasts() const { return prefetching() || state_ == State::fixed_off; }
  f32 threshold() const { return threshold_; }  // least probability worth a read
  i64 farthest() const { return options_.farthest; }  // layers ahead of which hints are read
  i64 lookahead() const { return lookahead_; }     // layers ahead that are worth a guess
  State state() const { return state_; }
  f64 gain() const { return gain_; }  // tokens/s with prefetch over without, less 1, as last compared

 private:
  struct Sum {
    i64 tokens = 0, ns = 0, busy_ns = 0, predicted = 0, useful = 0;
    f64 tokens_per_ns() const { return ns > 0 ? static_cast<f64>(tokens) / static_cast<f64>(ns) : 0; }
  };
  i64 turns() const;
  bool comparing() const { return state_ == State::measuring && windows_done_ >= 0; }
  void adapt();
  Verdict end_window();
  Verdict judge();
  void begin_comparison();

  GovernorOptions options_;
  State state_;
  f32 threshold_;
  i64 lookahead_ = 1;
  f64 gain_ = 0;
  Sum window_, with_, without_;
  i64 windows_done_ = 0;  // since the verdict; of a comparison, turns
  i64 rest_windows_;      // how long the next verdict stands
};

const char* name(Governor::State state);

}  // namespace stoker
