#include "scheduler/policy/governor.h"

#include <doctest/doctest.h>

#include <initializer_list>

using namespace stoker;

namespace {

constexpr i64 kWarmUpWindows = 10;  // before the first comparison

// So many windows of passes that take `with_ns` per token while the governor prefetches and `without_ns` otherwise.
// The last verdict.
Governor::Verdict feed(Governor& governor, i64 windows, i64 with_ns, i64 without_ns, f64 busy = 0.8, f64 useful = 0.6) {
  Governor::Verdict last = Governor::Verdict::none;
  for (i64 token = 0; token < windows * GovernorOptions{}.window_tokens; token++) {
    i64 ns = governor.prefetching() ? with_ns : without_ns;
    i64 predicted = governor.prefetching() ? 1000 : 0;
    Governor::Verdict verdict = governor.observe({.tokens = 1,
                                                  .ns = ns,
                                                  .disk_busy_ns = static_cast<i64>(static_cast<f64>(ns) * busy),
                                                  .predicted_bytes = predicted,
                                                  .useful_bytes = static_cast<i64>(static_cast<f64>(predicted) * useful)});
    if (verdict != Governor::Verdict::none) last = verdict;
  }
  return last;
}

// One that has seen the cache fill.
Governor warm() {
  Governor governor({PrefetchMode::automatic});
  feed(governor, kWarmUpWindows, 1000, 1000);
  return governor;
}

}  // namespace

TEST_CASE("tokens that fill the cache are not compared, and prefetch helps them") {
  Governor governor({PrefetchMode::automatic});
  for (i64 window = 0, ns = 8000; window < kWarmUpWindows; window++, ns /= 2) {
    CHECK(governor.prefetching());
    CHECK(feed(governor, 1, ns, ns) == Governor::Verdict::none);
  }
  CHECK(feed(governor, 2, 900, 1000) == Governor::Verdict::on);
  CHECK(governor.gain() == doctest::Approx(1000.0 / 900 - 1));
}

TEST_CASE("a fixed mode stays whatever is measured") {
  Governor on({PrefetchMode::on}), off({PrefetchMode::off});
  CHECK(feed(on, 20, 2000, 1000) == Governor::Verdict::none);
  CHECK(feed(off, 20, 1000, 2000) == Governor::Verdict::none);
  CHECK(on.prefetching());
  CHECK(!off.prefetching());
}

TEST_CASE("turns with and without prefetch, an eighth of a window each: on, off, off, on, and so on") {
  Governor governor = warm();
  for (i64 token = 0; token < 2 * GovernorOptions{}.window_tokens; token++) {
    CHECK(governor.state() == Governor::State::measuring);
    i64 turn = token / (GovernorOptions{}.window_tokens / 8) % 4;
    CHECK(governor.prefetching() == (turn == 0 || turn == 3));
    governor.observe({.tokens = 1, .ns = 1000});
  }
  CHECK(governor.state() == Governor::State::not_paying);
}

TEST_CASE("prefetch that does not pay is turned off, that does is kept on") {
  Governor slower = warm(), faster = warm();
  CHECK(feed(slower, 2, 1200, 1000) == Governor::Verdict::off);
  CHECK(!slower.prefetching());
  CHECK(slower.gain() == doctest::Approx(1000.0 / 1200 - 1));
  CHECK(feed(faster, 2, 900, 1000) == Governor::Verdict::on);
  CHECK(faster.prefetching());
  // Half a per cent is noise.
  Governor same = warm();
  CHECK(feed(same, 2, 995, 1000) == Governor::Verdict::off);
}

TEST_CASE("a machine that becomes slower all the time does not decide it") {
  Governor governor = warm();
  i64 ns = 1000;
  for (i64 token = 0; token < 2 * GovernorOptions{}.window_tokens; token++, ns += 10) governor.observe({.tokens = 1, .ns = ns});
  CHECK(governor.gain() == doctest::Approx(0).epsilon(0.001));
  CHECK(governor.state() == Governor::State::not_paying);
}

TEST_CASE("a verdict is tried again, and overturned when things have changed") {
  Governor governor = warm();
  CHECK(feed(governor, 2, 1200, 1000) == Governor::Verdict::off);
  CHECK(feed(governor, 8, 800, 1000) == Governor::Verdict::none);
  CHECK(governor.state() == Governor::State::measuring);
  CHECK(feed(governor, 2, 800, 1000) == Governor::Verdict::on);
  // The second verdict stands twice as long.
  CHECK(feed(governor, 15, 1200, 1000) == Governor::Verdict::none);
  CHECK(governor.state() == Governor::State::paying);
}

TEST_CASE("of what was compared before half counts") {
  Governor governor = warm();
  CHECK(feed(governor, 2, 900, 1000) == Governor::Verdict::on);
  feed(governor, 8, 900, 1000);
  CHECK(feed(governor, 2, 1030, 1000) == Governor::Verdict::on);  // by chance, perhaps
  CHECK(governor.gain() == doctest::Approx(3 / (0.9 + 2 * 1.03) - 1).epsilon(0.001));
  feed(governor, 16, 1030, 1000);
  CHECK(feed(governor, 2, 1030, 1000) == Governor::Verdict::off);
}

TEST_CASE("the threshold rises on a busy drive or with useless bytes, and falls on an idle one with useful ones") {
  Governor busy({PrefetchMode::on}), wasteful({PrefetchMode::on}), idle({PrefetchMode::on});
  f32 first = busy.threshold();
  feed(busy, 3, 1000, 1000, 0.97, 0.9);
  CHECK(busy.threshold() > first);
  feed(wasteful, 3, 1000, 1000, 0.3, 0.2);
  CHECK(wasteful.threshold() > first);
  feed(idle, 3, 1000, 1000, 0.3, 0.9);
  CHECK(idle.threshold() < first);
  Governor half({PrefetchMode::on});  // enough for an idle drive
  feed(half, 3, 1000, 1000, 0.5, 0.6);
  CHECK(half.threshold() < first);
  feed(half, 100, 1000, 1000, 0.5, 0.6);
  CHECK(half.threshold() == doctest::Approx(0.2));
  CHECK(half.lookahead() == 1);  // but not to look farther ahead
  Governor likely({PrefetchMode::on});  // on a drive with little time left
  feed(likely, 3, 1000, 1000, 0.8, 0.6);
  CHECK(likely.threshold() > first);
  feed(likely, 100, 1000, 1000, 0.8, 0.6);
  CHECK(likely.threshold() == doctest::Approx(0.6));
  feed(busy, 100, 1000, 1000, 0.97, 0.9);
  feed(idle, 100, 1000, 1000, 0.3, 0.9);
  CHECK(busy.threshold() < 1);
  CHECK(idle.threshold() > 0);
}

TEST_CASE("an idle drive whose guesses were wanted is given earlier ones, a busy or wasted one is not") {
  Governor governor({PrefetchMode::on});
  CHECK(governor.lookahead() == 1);
  feed(governor, 1, 1000, 1000, 0.3, 0.9);
  CHECK(governor.lookahead() == 2);
  feed(governor, 9, 1000, 1000, 0.3, 0.9);
  CHECK(governor.lookahead() == Governor::kFarthest);
  feed(governor, 1, 1000, 1000, 0.8, 0.6);
  CHECK(governor.lookahead() == Governor::kFarthest);
  feed(governor, 1, 1000, 1000, 0.97, 0.9);
  CHECK(governor.lookahead() == Governor::kFarthest - 1);
  feed(governor, 9, 1000, 1000, 0.3, 0.2);
  CHECK(governor.lookahead() == 1);
}

TEST_CASE("threshold, window and the least gain can be given") {
  Governor fixed({.mode = PrefetchMode::on, .threshold = 0.4f});
  feed(fixed, 9, 1000, 1000, 0.97, 0.1);
  CHECK(fixed.threshold() == 0.4f);
  GovernorOptions quick{.window_tokens = 1, .least_gain = 0.3};
  Governor greedy(quick);
  for (i64 token = 0; token < kWarmUpWindows + 2; token++) greedy.observe({.tokens = 1, .ns = greedy.prefetching() ? 800 : 1000});
  CHECK(greedy.gain() == doctest::Approx(0.25));
  CHECK(greedy.state() == Governor::State::not_paying);
}
