// bench/sampler: time of a draw from the logits of a large vocabulary, by what the sampler is asked to do. One thread, as a
// row of a step has.
//
// Logits fall with the logarithm of their rank, in random order of the tokens: 2 per factor of e, as where a trained model is
// fairly sure (the first token has 60 %), or 0.8, as after a temperature or with a model that knows little, where a text's
// probability is spread over thousands of tokens.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/base/clock.h"
#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "runtime/sampler.h"

using namespace stoker;

namespace {

struct Options {
  i64 vocab = 129280;  // of DeepSeek-V3
  i64 draws = 60, history = 4096;
  std::vector<f64> falls = {2, 0.8};
};

struct Case {
  const char* name;
  SamplerOptions sampler;
};

// All that is not named is off.
const Case kCases[] = {
    {"greedy", {.temperature = 0, .top_k = 0, .top_p = 1, .min_p = 0}},
    {"temperature alone", {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0}},
    {"top-k 40", {.temperature = 1, .top_k = 40, .top_p = 1, .min_p = 0}},
    {"top-p 0.95", {.temperature = 1, .top_k = 0, .top_p = 0.95f, .min_p = 0}},
    {"min-p 0.05", {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0.05f}},
    {"the defaults", {}},
    {"the defaults, penalties over 64", {.repeat_penalty = 1.1f, .presence_penalty = 0.5f, .frequency_penalty = 0.1f}},
    {"the defaults, penalties over all", {.repeat_penalty = 1.1f, .presence_penalty = 0.5f, .frequency_penalty = 0.1f, .repeat_window = -1}},
};

std::vector<f32> make_logits(i64 vocab, f64 fall, u64 seed) {
  Rng rng(seed);
  std::vector<f32> logits(static_cast<size_t>(vocab));
  for (size_t rank = 0; rank < logits.size(); rank++)
    logits[rank] = static_cast<f32>(-fall * std::log(static_cast<f64>(rank + 1)) + 0.1 * rng.normal());
  for (size_t i = logits.size(); i > 1; i--) std::swap(logits[i - 1], logits[static_cast<size_t>(rng.below(static_cast<i64>(i)))]);
  return logits;
}

// Median microseconds of a draw, after one that warms up. `sum` gets the tokens, as a check that nothing was left out.
f64 median_us(const Options& o, const Case& c, const std::vector<std::vector<f32>>& logits, const std::vector<i32>& history, i64& sum) {
  Sampler sampler(c.sampler, o.vocab);
  std::vector<f64> us;
  for (i64 i = -1; i < o.draws; i++) {
    const std::vector<f32>& row = logits[static_cast<size_t>(i + 1) % logits.size()];
    i64 begin = steady_clock().now_ns();
    sum += sampler.sample(row, history);
    if (i >= 0) us.push_back(static_cast<f64>(steady_clock().now_ns() - begin) / 1e3);
  }
  std::sort(us.begin(), us.end());
  return us[us.size() / 2];
}

void run(const Options& o) {
  constexpr u64 kRows = 4;  // more than a cache keeps of the row before
  Rng rng(9);
  std::vector<i32> history;
  for (i64 i = 0; i < o.history; i++) history.push_back(static_cast<i32>(rng.below(o.vocab)));
  fmt::print("us per draw, {} tokens of vocabulary, {} of history, median of {}\n{:34}", o.vocab, o.history, o.draws, "");
  std::vector<std::vector<std::vector<f32>>> logits;
  for (f64 fall : o.falls) {
    for (logits.emplace_back(); logits.back().size() < kRows;) logits.back().push_back(make_logits(o.vocab, fall, logits.back().size()));
    fmt::print(" {:>10}", fmt::format("fall {}", fall));
  }
  fmt::print("   sum of tokens\n");
  for (const Case& c : kCases) {
    i64 sum = 0;
    fmt::print("{:34}", c.name);
    for (const auto& rows : logits) fmt::print(" {:10.1f}", median_us(o, c, rows, history, sum));
    fmt::print("   {}\n", sum);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Time of a draw, by what the sampler is asked to do.");
  app.add_option("--vocab", o.vocab)->capture_default_str()->check(CLI::Range(2, 1 << 24));
  app.add_option("--draws", o.draws, "for each figure")->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--history", o.history, "tokens before it")->capture_default_str()->check(CLI::NonNegativeNumber);
  app.add_option("--falls", o.falls, "of logits, per factor e of their rank")->capture_default_str()->delimiter(',');
  CLI11_PARSE(app, argc, argv);
  try {
    run(o);
  } catch (const Error& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return 1;
  }
  return 0;
}
