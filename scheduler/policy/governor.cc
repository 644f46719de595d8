#include "scheduler/policy/governor.h"

#include <algorithm>

namespace stoker {

namespace {

constexpr i64 kTurns = 8;                  // of a window that is compared, if it has as many tokens
// Before the first comparison. They fill the cache: with the first of them as a window with prefetch, prefetch seemed to cost
// 27 % where it gains 2; and what it brings into slots that would be empty is there in windows without it too, so that 3 % of
// gain did not show on the simulated tower, where filling takes 600 tokens. It is on meanwhile.
constexpr i64 kWarmUpWindows = 10;
constexpr i64 kFirstRest = 8;              // windows until a verdict is tried again
constexpr i64 kLongestRest = 256;
// Simulated on the measured 2-core machine (27 GB model): from 0.4 to 0.2 gains 1.5 % where the drive is busy for half of the
// time, although 62 % of what is read is wanted instead of 71, and loses up to 0.5 % where it is for 80 %. With small experts
// and a drive that 0.4 keeps busy for 72 %, 0.6 is 1 to 2 % faster.
constexpr f32 kFirstThreshold = 0.4f, kLowest = 0.2f, kLikely = 0.6f, kHighest = 0.95f, kStep = 0.05f;
constexpr f64 kSaturated = 0.9, kBusy = 0.7, kIdle = 0.6;  // busy shares of the drive
constexpr f64 kWasteful = 0.5, kThrifty = 0.55, kSure = 0.75;  // useful shares of predicted bytes

f64 share(i64 part, i64 whole) { return whole > 0 ? static_cast<f64>(part) / static_cast<f64>(whole) : 0; }

Governor::State first_state(PrefetchMode mode) {
  switch (mode) {
    case PrefetchMode::off: return Governor::State::fixed_off;
    case PrefetchMode::on: return Governor::State::fixed_on;
    case PrefetchMode::automatic: break;
  }
  return Governor::State::measuring;
}

}  // namespace

Governor::Governor(const GovernorOptions& options)
    : options_(options),
      state_(first_state(options.mode)),
      threshold_(options.threshold > 0 ? options.threshold : kFirstThreshold),
      windows_done_(-kWarmUpWindows),
      rest_windows_(kFirstRest) {}

// Of each window of a comparison.
i64 Governor::turns() const { return std::min(kTurns, options_.window_tokens); }

bool Governor::prefetching() const {
  if (comparing()) return windows_done_ % 4 == 0 || windows_done_ % 4 == 3;
  if (state_ == State::measuring) return true;
  return state_ == State::fixed_on || state_ == State::paying;
}

Governor::Verdict Governor::observe(const GovernorPass& pass) {
  window_.tokens += pass.tokens;
  window_.ns += pass.ns;
  window_.busy_ns += pass.disk_busy_ns;
  window_.predicted += pass.predicted_bytes;
  window_.useful += pass.useful_bytes;
  i64 tokens = comparing() ? options_.window_tokens / turns() : options_.window_tokens;
  if (window_.tokens < tokens) return Verdict::none;
  Verdict verdict = end_window();
  window_ = {};
  return verdict;
}

// With a drive without time left only what is nearly sure is worth a read, with a busy one what is likely; an idle one reads
// much more, and earlier.
void Governor::adapt() {
  f64 busy = share(window_.busy_ns, window_.ns);
  f64 useful = window_.predicted > 0 ? share(window_.useful, window_.predicted) : 1;
  const bool timid = busy > kSaturated || useful < kWasteful, idle = busy < kIdle;
  lookahead_ = std::clamp<i64>(lookahead_ + (timid ? -1 : idle && useful > kSure ? 1 : 0), 1, kFarthest);
  if (options_.threshold > 0) return;
  if (timid || (busy > kBusy && threshold_ < kLikely)) threshold_ += kStep;
  else if (idle && useful > kThrifty) threshold_ -= kStep;
  threshold_ = std::clamp(threshold_, kLowest, kHighest);
}

Governor::Verdict Governor::end_window() {
  if (prefetching() && !comparing()) adapt();
  switch (state_) {
    case State::fixed_off:
    case State::fixed_on:
      return Verdict::none;
    case State::measuring: {
      if (windows_done_ < 0) {
        windows_done_++;
        return Verdict::none;
      }
      Sum& sum = prefetching() ? with_ : without_;
      sum.tokens += window_.tokens;
      sum.ns += window_.ns;
      return ++windows_done_ == 2 * turns() ? judge() : Verdict::none;
    }
    case State::paying:
    case State::not_paying:
      if (++windows_done_ >= rest_windows_) begin_comparison();
      return Verdict::none;
  }
  return Verdict::none;
}

Governor::Verdict Governor::judge() {
  gain_ = without_.tokens_per_ns() > 0 ? with_.tokens_per_ns() / without_.tokens_per_ns() - 1 : 0;
  bool pays = gain_ > options_.least_gain;
  state_ = pays ? State::paying : State::not_paying;
  windows_done_ = 0;
  return pays ? Verdict::on : Verdict::off;
}

void Governor::begin_comparison() {
  rest_windows_ = std::min(rest_windows_ * 2, kLongestRest);
  state_ = State::measuring;
  windows_done_ = 0;
  for (Sum* sum : {&with_, &without_}) {
    sum->tokens /= 2;
    sum->ns /= 2;
  }
}

const char* name(Governor::State state) {
  switch (state) {
    case Governor::State::fixed_off: return "off";
    case Governor::State::fixed_on: return "on";
    case Governor::State::measuring: return "measuring";
    case Governor::State::paying: return "on: it pays";
    case Governor::State::not_paying: return "off: it does not pay";
  }
  return "";
}

}  // namespace stoker
