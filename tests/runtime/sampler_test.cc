#include "runtime/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

namespace stoker {
namespace {

constexpr f32 kNaN = std::numeric_limits<f32>::quiet_NaN();
constexpr f32 kInf = std::numeric_limits<f32>::infinity();

// Everything off: a draw from the softmax of all logits.
SamplerOptions plain(u64 seed = 1) {
  return {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .repeat_window = 64, .seed = seed};
}

std::map<i32, f64> shares(const SamplerOptions& options, const std::vector<f32>& logits, i64 draws = 20000) {
  Sampler sampler(options, static_cast<i64>(logits.size()));
  std::map<i32, f64> result;
  for (i64 i = 0; i < draws; i++) result[sampler.sample(logits, {})] += 1.0 / static_cast<f64>(draws);
  return result;
}

std::vector<i32> drawn(const SamplerOptions& options, const std::vector<f32>& logits, i64 draws) {
  Sampler sampler(options, static_cast<i64>(logits.size()));
  std::vector<i32> result;
  for (i64 i = 0; i < draws; i++) result.push_back(sampler.sample(logits, {}));
  return result;
}

i32 greedy(const std::vector<f32>& logits, const std::vector<i32>& history = {}, f32 penalty = 1, i64 window = 64) {
  SamplerOptions options = plain();
  options.temperature = 0;
  options.repeat_penalty = penalty;
  options.repeat_window = window;
  return Sampler(options, static_cast<i64>(logits.size())).sample(logits, history);
}

// Probabilities 0.4, 0.3, 0.2, 0.1, out of order.
const std::vector<f32> kLogits = {std::log(0.2f), std::log(0.4f), std::log(0.1f), std::log(0.3f)};

// The definition: sorts everything, cuts from the end.
class SortingSampler {
 public:
  explicit SortingSampler(const SamplerOptions& options) : options_(options), rng_(options.seed) {}

  i32 sample(const std::vector<f32>& logits) {
    std::vector<i32> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    auto logit = [&](i32 id) { return logits[static_cast<size_t>(id)]; };
    ids.erase(std::remove_if(ids.begin(), ids.end(), [&](i32 id) { return std::isnan(logit(id)) || logit(id) == -kInf; }), ids.end());
    std::stable_sort(ids.begin(), ids.end(), [&](i32 a, i32 b) { return logit(a) > logit(b); });
    if (options_.top_k > 0) ids.resize(std::min(ids.size(), static_cast<size_t>(options_.top_k)));
    auto softmax = [&](f64 temperature) {
      std::vector<f64> p;
      for (i32 id : ids) p.push_back(std::exp((static_cast<f64>(logit(id)) - static_cast<f64>(logit(ids[0]))) / temperature));
      f64 sum = std::accumulate(p.begin(), p.end(), 0.0);
      for (f64& value : p) value /= sum;
      return p;
    };
    std::vector<f64> p = softmax(1);
    size_t count = ids.size();
    if (options_.top_p < 1) {
      count = 0;
      for (f64 sum = 0; count < ids.size() && sum < options_.top_p;) sum += p[count++];
      count = std::max<size_t>(1, count);
    }
    while (count > 1 && p[count - 1] < options_.min_p * p[0]) count--;
    ids.resize(count);
    p = softmax(options_.temperature);
    f64 u = rng_.uniform();
    for (size_t i = 0; i < count; i++) {
      if (u < p[i]) return ids[i];
      u -= p[i];
    }
    return ids[0];
  }

 private:
  SamplerOptions options_;
  Rng rng_;
};

}  // namespace

TEST_CASE("sorting no further than needed draws what sorting everything draws") {
  Rng rng(3);
  auto one_of = [&](const auto& values) { return values[static_cast<size_t>(rng.below(static_cast<i64>(values.size())))]; };
  for (u64 round = 0; round < 200; round++) {
    SamplerOptions options = plain(round);
    options.temperature = one_of(std::vector<f32>{0.3f, 1, 2, 20});
    options.top_k = one_of(std::vector<i64>{0, 0, 1, 5, 40, 1000, 1 << 20});
    options.top_p = one_of(std::vector<f32>{1, 0.95f, 0.5f, 0});
    options.min_p = one_of(std::vector<f32>{0, 0.05f, 1e-4f});
    std::vector<f32> logits(static_cast<size_t>(1 + rng.below(3000)));
    f64 scale = rng.below(2) == 0 ? 0.5 : 5;
    for (f32& logit : logits) logit = static_cast<f32>(std::round(rng.normal() * 50) / 50 * scale);  // some are equal
    i64 left = one_of(std::vector<i64>{3000, 30, 0}), apart = 97;  // of few numbers some lie far from each other
    for (i64 i = left; i < static_cast<i64>(logits.size()); i++)
      if (i % apart != 0) logits[static_cast<size_t>(i)] = rng.below(2) == 0 ? kNaN : -kInf;
    Sampler sampler(options, static_cast<i64>(logits.size()));
    SortingSampler sorting(options);
    for (i64 i = 0; i < 20; i++) CHECK(sampler.sample(logits, {}) == sorting.sample(logits));
  }
}

TEST_CASE("the largest logit of many is found wherever it is") {
  Rng rng(5);
  for (int round = 0; round < 300; round++) {
    std::vector<f32> logits(static_cast<size_t>(1 + rng.below(500)));
    for (f32& logit : logits) logit = rng.below(4) == 0 ? kNaN : static_cast<f32>(std::round(rng.normal() * 2) - 3);
    size_t best = logits.size();
    for (size_t i = 0; i < logits.size(); i++)
      if (!std::isnan(logits[i]) && (best == logits.size() || logits[i] > logits[best])) best = i;
    CHECK(argmax(logits) == static_cast<i32>(best == logits.size() ? 0 : best));
  }
}

TEST_CASE("temperature 0 takes the largest logit, the first of equal ones") {
  CHECK(greedy({1, 3, 2}) == 1);
  CHECK(greedy({1, 3, 3}) == 1);
  CHECK(greedy({-kInf, -5, -kInf}) == 1);
}

TEST_CASE("without limits, tokens come as often as their probability says") {
  std::map<i32, f64> share = shares(plain(), kLogits);
  // Three standard deviations of 20,000 draws are 0.0104 at most.
  CHECK(std::abs(share[0] - 0.2) < 0.011);
  CHECK(std::abs(share[1] - 0.4) < 0.011);
  CHECK(std::abs(share[2] - 0.1) < 0.011);
  CHECK(std::abs(share[3] - 0.3) < 0.011);
}

TEST_CASE("temperature sharpens and flattens") {
  SamplerOptions options = plain();
  options.temperature = 0.5f;  // probabilities squared: 16 9 4 1 of 30
  std::map<i32, f64> share = shares(options, kLogits);
  CHECK(std::abs(share[1] - 16 / 30.0) < 0.011);
  CHECK(std::abs(share[2] - 1 / 30.0) < 0.011);
  options.temperature = 1e6f;
  CHECK(std::abs(shares(options, kLogits)[2] - 0.25) < 0.011);
}

TEST_CASE("top-k keeps the k best") {
  SamplerOptions options = plain();
  options.top_k = 2;
  std::map<i32, f64> share = shares(options, kLogits);
  CHECK(share.size() == 2);
  CHECK(std::abs(share[1] - 4 / 7.0) < 0.011);
  options.top_k = 1;
  CHECK(drawn(options, kLogits, 3) == std::vector<i32>{1, 1, 1});
}

TEST_CASE("top-p keeps the fewest best that reach it") {
  SamplerOptions options = plain();
  options.top_p = 0.65f;  // 0.4 + 0.3
  CHECK(shares(options, kLogits, 2000).size() == 2);
  options.top_p = 0.75f;
  CHECK(shares(options, kLogits, 2000).size() == 3);
  options.top_p = 0;
  CHECK(shares(options, kLogits, 2000).size() == 1);
}

TEST_CASE("min-p drops what is less likely than its share of the best") {
  SamplerOptions options = plain();
  options.min_p = 0.6f;  // 0.6 * 0.4 = 0.24
  CHECK(shares(options, kLogits, 2000).size() == 2);
  options.min_p = 0.3f;  // 0.12
  CHECK(shares(options, kLogits, 2000).size() == 3);
  options.min_p = 1;
  CHECK(shares(options, kLogits, 2000).size() == 1);
}

TEST_CASE("top-p looks at the distribution before temperature") {
  SamplerOptions options = plain();
  options.top_p = 0.65f;
  options.temperature = 100;
  CHECK(shares(options, kLogits, 2000).size() == 2);
}

TEST_CASE("the repeat penalty divides positive and multiplies negative logits, once per token") {
  CHECK(greedy({5, 4}, {0}, 1.0f) == 0);
  CHECK(greedy({5, 4}, {0}, 1.2f) == 0);        // 4.17
  CHECK(greedy({5, 4}, {0}, 1.3f) == 1);        // 3.85
  CHECK(greedy({5, 4}, {0, 0, 0}, 1.2f) == 0);  // still 4.17
  CHECK(greedy({-1, -1.1f}, {0}, 1.3f) == 1);   // -1.3
}

TEST_CASE("the repeat penalty looks at the last tokens only") {
  CHECK(greedy({5, 4, 0, 0}, {0, 2, 3}, 2, 2) == 0);
  CHECK(greedy({5, 4, 0, 0}, {0, 2, 3}, 2, 3) == 1);
  CHECK(greedy({5, 4, 0, 0}, {0, 2, 3}, 2, 0) == 0);
  CHECK(greedy({5, 4, 0, 0}, {}, 2, 64) == 0);
}

TEST_CASE("presence counts once, frequency each time, over the same window") {
  auto with = [](f32 presence, f32 frequency, i64 window, const std::vector<i32>& history) {
    SamplerOptions options = plain();
    options.temperature = 0;
    options.presence_penalty = presence;
    options.frequency_penalty = frequency;
    options.repeat_window = window;
    return Sampler(options, 2).sample(std::vector<f32>{5, 4}, history);
  };
  CHECK(with(0.9f, 0, 64, {0, 0, 0}) == 0);
  CHECK(with(1.1f, 0, 64, {0}) == 1);
  CHECK(with(0, 0.4f, 64, {0, 0}) == 0);
  CHECK(with(0, 0.4f, 64, {0, 0, 0}) == 1);
  CHECK(with(0, 0.4f, 2, {0, 0, 0}) == 0);
  CHECK(with(0, 0.01f, -1, std::vector<i32>(101, 0)) == 1);
  CHECK(with(-2, 0, 64, {1}) == 1);
}

TEST_CASE("a bias is added before everything else, and minus infinity forbids") {
  SamplerOptions options = plain();
  options.logit_bias = {{1, -kInf}, {3, std::log(2.0f)}};  // weights 0.2, 0, 0.1, 0.6
  std::map<i32, f64> share = shares(options, kLogits);
  CHECK(share.count(1) == 0);
  CHECK(std::abs(share[3] - 6 / 9.0) < 0.011);
  options.top_k = 1;
  CHECK(drawn(options, kLogits, 2) == std::vector<i32>{3, 3});
}

TEST_CASE("a filter's tokens come as often as if there were no others") {
  struct Even : TokenFilter {
    i64 masks = 0;
    bool allows(i32 token) override { return token % 2 == 0; }
    void mask(std::span<f32> logits) override {
      masks++;
      for (size_t i = 1; i < logits.size(); i += 2) logits[i] = -kInf;
    }
    bool accept(i32 token) override { return allows(token); }
    bool finished() const override { return false; }
  } even;
  Sampler sampler(plain(), 4);
  i64 zeros = 0, draws = 20000;
  for (i64 i = 0; i < draws; i++) {
    i32 token = sampler.sample(kLogits, {}, &even);
    CHECK(even.allows(token));
    zeros += token == 0 ? 1 : 0;
  }
  CHECK(std::abs(static_cast<f64>(zeros) / static_cast<f64>(draws) - 2 / 3.0) < 0.011);
  CHECK(even.masks < draws);  // an allowed token needs no mask
}

TEST_CASE("equal seeds draw equal tokens, other seeds draw others") {
  CHECK(drawn(plain(7), kLogits, 64) == drawn(plain(7), kLogits, 64));
  CHECK(drawn(plain(7), kLogits, 64) != drawn(plain(8), kLogits, 64));
}

TEST_CASE("logits that are no number are never chosen") {
  CHECK(greedy({kNaN, 1, 2}) == 2);
  CHECK(greedy({1, kNaN, 0}) == 0);
  CHECK(greedy({1, 2, kNaN}) == 1);
  std::map<i32, f64> share = shares(plain(), {kNaN, 1, kNaN, 1}, 2000);
  CHECK(share.size() == 2);
  CHECK(share.count(1) == 1);
  CHECK(share.count(3) == 1);
}

TEST_CASE("logits without a single number still give a token of the vocabulary") {
  std::vector<f32> logits(5, kNaN);
  CHECK(greedy(logits) == 0);
  CHECK(drawn(plain(), logits, 3) == std::vector<i32>{0, 0, 0});
}

TEST_CASE("infinite logits are no trap") {
  CHECK(drawn(plain(), {1, kInf, 3}, 3) == std::vector<i32>{1, 1, 1});
  CHECK(drawn(plain(), {-kInf, -kInf, 3}, 3) == std::vector<i32>{2, 2, 2});
  for (i32 token : drawn(plain(), {-kInf, -kInf}, 10)) CHECK((token == 0 || token == 1));
}

}  // namespace stoker
