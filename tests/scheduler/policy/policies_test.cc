// What every residency policy promises, for all of them from one list; then, what each is about.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/rng.h"
#include "scheduler/policy/expert_cache.h"
#include "scheduler/policy/make_policy.h"
#include "tests/scheduler/policy/plan_of.h"

using namespace stoker;
using stoker::test::plan_of;

namespace {

// Of whatever a policy may be told in advance: expert e of all layers is wanted by e + 1 of 100 tokens.
Popularity some_popularity(i64 layers, i64 experts) {
  Popularity p(layers, experts);
  std::vector<f32> uses;
  for (i64 e = 0; e < experts; e++) uses.push_back(static_cast<f32>(e + 1));
  for (i64 l = 0; l < layers; l++) p.set(l, 100, uses);
  return p;
}

std::unique_ptr<ResidencyPolicy> any_policy(std::string_view name, const Plan& plan, i64 experts, i64 top_k) {
  Popularity known = some_popularity(static_cast<i64>(plan.class_of_moe_layer.size()), experts);
  return make_policy(name, plan, experts, top_k, &known);
}

// Slots and pins as the scheduler would have them, around any policy. Checks every victim against the contract.
class Model {
 public:
  Model(std::unique_ptr<ResidencyPolicy> p, const std::vector<i64>& class_of_layer, i64 classes, i64 experts)
      : policy(std::move(p)),
        class_of_(class_of_layer),
        experts_(experts),
        slots_(static_cast<size_t>(classes)),
        pins_(class_of_layer.size() * static_cast<size_t>(experts)) {}

  void set_slots(i64 c, i64 n) {
    slots_[static_cast<size_t>(c)] = n;
    policy->on_capacity(c, n);
  }
  i64 slots(i64 c) const { return slots_[static_cast<size_t>(c)]; }
  bool resident(ExpertKey key) const { return resident_.contains(index(key)); }
  i64 residents(i64 c) const {
    return std::count_if(resident_.begin(), resident_.end(), [&](i64 i) { return class_of_index(i) == c; });
  }
  bool anything_free(i64 c) const {
    return std::any_of(resident_.begin(), resident_.end(),
                       [&](i64 i) { return class_of_index(i) == c && pins_[static_cast<size_t>(i)] == 0; });
  }
  void pin(ExpertKey key) {
    policy->on_pin(key);
    pins_[static_cast<size_t>(index(key))]++;
  }
  void unpin(ExpertKey key) {
    policy->on_unpin(key);
    pins_[static_cast<size_t>(index(key))]--;
  }
  void check_victim(ExpertKey victim, i64 layer) {
    REQUIRE(resident(victim));
    REQUIRE(pins_[static_cast<size_t>(index(victim))] == 0);
    REQUIRE(class_of_[static_cast<size_t>(victim.moe_layer)] == class_of_[static_cast<size_t>(layer)]);
  }
  // Whether it has got a slot; pinned, as on_admit says.
  bool admit(ExpertKey key) {
    i64 c = class_of_[static_cast<size_t>(key.moe_layer)];
    if (residents(c) == slots(c)) {
      std::optional<ExpertKey> victim = policy->choose_victim(key.moe_layer);
      CHECK(victim == policy->choose_victim(key.moe_layer));  // asking changes nothing
      if (!victim) return false;
      check_victim(*victim, key.moe_layer);
      policy->on_evict(*victim);
      resident_.erase(index(*victim));
      story += fmt::format("{}.{} ", victim->moe_layer, victim->expert.value);
    }
    policy->on_admit(key);
    resident_.insert(index(key));
    pins_[static_cast<size_t>(index(key))] = 1;
    CHECK(residents(c) <= slots(c));
    return true;
  }
  // One batch of a layer, everything in memory at the same time if it fits; returns the hits.
  i64 step(i64 layer, const std::vector<i64>& wanted, i64 tokens = 1) {
    policy->on_layer(layer, tokens);
    i64 hits = 0;
    std::vector<ExpertKey> held;
    for (i64 e : wanted) {
      ExpertKey key{layer, ExpertId(e)};
      policy->on_use(key, tokens, static_cast<f32>(tokens) * .1f);
      if (!resident(key)) continue;
      hits++;
      pin(key);
      held.push_back(key);
    }
    for (i64 e : wanted) {
      ExpertKey key{layer, ExpertId(e)};
      if (resident(key)) continue;
      if (!admit(key)) break;
      held.push_back(key);
    }
    got = static_cast<i64>(held.size());
    for (ExpertKey key : held) unpin(key);
    return hits;
  }

  std::unique_ptr<ResidencyPolicy> policy;
  std::string story;  // the victims
  i64 got = 0;        // experts of the last step that were in memory at the same time

 private:
  i64 index(ExpertKey key) const { return key.moe_layer * experts_ + key.expert.value; }
  i64 class_of_index(i64 i) const { return class_of_[static_cast<size_t>(i / experts_)]; }
  std::vector<i64> class_of_;
  i64 experts_;
  std::vector<i64> slots_;
  std::vector<i32> pins_;
  std::set<i64> resident_;
};

void expect_something(Model& m, Rng& rng, i64 layers, i64 experts) {
  ExpertKey key{rng.below(layers), ExpertId(rng.below(experts))};
  f32 probability = static_cast<f32>(rng.below(100)) / 100;
  m.policy->on_expect(key, probability);
  if (std::optional<ExpertKey> victim = m.policy->choose_victim_for(key, probability)) m.check_victim(*victim, key.moe_layer);
}

std::string random_run(const std::string& name, u64 seed) {
  Rng rng(seed);
  i64 layers = 1 + rng.below(6), classes = 1 + rng.below(std::min<i64>(3, layers)), experts = 4 + rng.below(12);
  i64 top_k = 1 + rng.below(4);
  std::vector<i64> class_of_layer;
  for (i64 l = 0; l < layers; l++) class_of_layer.push_back(l < classes ? l : rng.below(classes));
  Model m(any_policy(name, plan_of(class_of_layer, classes), experts, top_k), class_of_layer, classes, experts);
  for (i64 c = 0; c < classes; c++) m.set_slots(c, top_k);
  for (int token = 0; token < 50; token++) {
    if (rng.below(6) == 0) {  // the arena grows
      i64 c = rng.below(classes);
      m.set_slots(c, m.slots(c) + rng.below(4));
    }
    for (i64 l = 0; l < layers; l++) {
      i64 wanted = rng.below(5) == 0 ? 1 + rng.below(experts) : std::min(top_k, experts);
      std::vector<i64> ids;
      for (i64 i = 0, e = rng.below(experts); i < wanted; i++) ids.push_back((e + i) % experts);
      m.step(l, ids, 1 + rng.below(3));
      // What one token needs is in memory at the same time; and with nothing pinned there is always a victim.
      if (wanted <= top_k) CHECK(m.got == wanted);
      for (i64 other = 0; other < layers; other++)
        if (m.anything_free(class_of_layer[static_cast<size_t>(other)]) &&
            m.residents(class_of_layer[static_cast<size_t>(other)]) == m.slots(class_of_layer[static_cast<size_t>(other)]))
          CHECK(m.policy->choose_victim(other).has_value());
      expect_something(m, rng, layers, experts);
    }
  }
  return m.story;
}

Model one_layer(const std::string& name, i64 slots, i64 experts = 16, i64 top_k = 1) {
  Model m(make_policy(name, plan_of({0}, 1), experts, top_k), {0}, 1, experts);
  m.set_slots(0, slots);
  return m;
}

ExpertKey key_of(i64 layer, i64 expert) { return {layer, ExpertId(expert)}; }

}  // namespace

TEST_CASE("every policy stays within the slots, keeps what is pinned, always finds a victim, and does so again") {
  for (const PolicyRow& policy : policy_rows()) {
    CAPTURE(std::string(policy.name));
    size_t victims = 0;
    for (u64 seed = 1; seed <= 40; seed++) {
      CAPTURE(seed);
      std::string story = random_run(std::string(policy.name), seed);
      CHECK(story == random_run(std::string(policy.name), seed));
      victims += static_cast<size_t>(std::count(story.begin(), story.end(), ' '));
    }
    CHECK(victims > 1000);  // the runs are about something
  }
}

TEST_CASE("every policy keeps the floors of layers when a token's experts do not fit") {
  for (const PolicyRow& policy : policy_rows()) {
    CAPTURE(std::string(policy.name));
    std::vector<i64> one_class(4, 0);
    Model m(any_policy(policy.name, plan_of(one_class, 1), 8, 2), one_class, 1, 8);
    m.set_slots(0, 7);  // one short of a token's 8
    i64 hits = 0;
    for (int token = 0; token < 10; token++)
      for (i64 l = 0; l < 4; l++) hits += m.step(l, {0, 1});
    CHECK(hits >= 9 * 4);  // half of them; plain LRU: none
  }
}

TEST_CASE("an unknown policy is refused with the names there are") {
  CHECK_THROWS_WITH_AS(make_policy("belady", plan_of({0}, 1), 8, 2), doctest::Contains("auto, ema, lru, lfu"), Error);
}

TEST_CASE("what is used often stays by a count, what was used last stays by recency") {
  auto survivor = [](const std::string& name) {
    Model m = one_layer(name, 2);
    for (int i = 0; i < 5; i++) m.step(0, {0});
    m.step(0, {1});
    m.step(0, {2});
    return m.resident(key_of(0, 0)) ? "often" : "last";
  };
  for (const char* name : {"auto", "ema", "lfu", "slru", "s3fifo"}) CHECK_MESSAGE(survivor(name) == std::string("often"), name);
  for (const char* name : {"lru", "least-stale", "mrs"}) CHECK_MESSAGE(survivor(name) == std::string("last"), name);
}

TEST_CASE("decayed counts forget, counts since the start do not") {
  auto remembers = [](const std::string& name) {
    Model m = one_layer(name, 2);
    for (int i = 0; i < 100; i++) m.step(0, {0});
    for (int i = 0; i < 99; i++) m.step(0, {1 + i % 2});
    return m.resident(key_of(0, 0));
  };
  CHECK(remembers("lfu"));
  CHECK(!remembers("ema"));
  CHECK(!remembers("auto"));
}

TEST_CASE("what has just been read goes by its value like everything else, and has a past when it comes back") {
  Model m = one_layer("ema", 3);
  for (int i = 0; i < 20; i++) m.step(0, {i % 2});  // 0 and 1 are at home
  for (i64 e = 2; e < 16; e++) {
    m.step(0, {e});  // strangers replace each other
    CHECK(m.resident(key_of(0, e)));
    CHECK(m.resident(key_of(0, 0)));
    CHECK(m.resident(key_of(0, 1)));
  }
}

TEST_CASE("an expected expert stays until its layer's turn, and only an equal or likelier one takes a slot") {
  for (const char* name : {"auto", "ema"}) {
    CAPTURE(name);
    std::vector<i64> one_class(2, 0);
    Model m(make_policy(name, plan_of(one_class, 1), 8, 1), one_class, 1, 8);
    m.set_slots(0, 5);  // one more than there are experts: no layer has its share
    for (i64 e : {0, 1, 1}) m.step(0, {e});
    for (i64 e : {2, 2, 3, 3}) m.step(1, {e});
    CHECK(m.policy->choose_victim(1) == key_of(0, 0));
    m.policy->on_expect(key_of(0, 0), .4f);
    CHECK(m.policy->choose_victim(1) == key_of(1, 2));
    m.policy->on_expect(key_of(0, 0), 0);  // taken back
    CHECK(m.policy->choose_victim(1) == key_of(0, 0));
    m.policy->on_expect(key_of(0, 0), .9f);
    m.policy->on_expect(key_of(0, 1), .9f);
    m.policy->on_expect(key_of(1, 3), .9f);
    m.policy->on_expect(key_of(1, 2), .2f);
    CHECK(m.policy->choose_victim(0) == key_of(1, 2));
    CHECK(!m.policy->choose_victim_for(key_of(0, 5), .2f));
    CHECK(m.policy->choose_victim_for(key_of(0, 5), .95f) == key_of(1, 2));
    m.policy->on_expect(key_of(1, 2), .9f);
    // All are expected: on demand there is a victim all the same, for what is only expected there is none.
    CHECK(m.policy->choose_victim(0).has_value());
    CHECK(!m.policy->choose_victim_for(key_of(0, 5), .95f));
    m.policy->on_layer(0, 1);  // its turn: over
    CHECK(m.policy->choose_victim(0)->moe_layer == 0);
  }
}

TEST_CASE("among equals the layer furthest ahead loses") {
  std::vector<i64> one_class(3, 0);
  Model m(make_policy("lfu", plan_of(one_class, 1), 8, 1), one_class, 1, 8);
  m.set_slots(0, 7);
  for (i64 l = 0; l < 3; l++)
    for (i64 e : {0, 1}) m.step(l, {e});
  m.step(1, {2});
  CHECK(m.policy->choose_victim(0) == key_of(1, 0));  // layer 1 has just had its turn
  m.policy->on_layer(0, 1);
  CHECK(m.policy->choose_victim(2) == key_of(0, 0));
}

TEST_CASE("a layer that has its share replaces its own, but for what is expected") {
  std::vector<i64> one_class(2, 0);
  Model m(make_policy("auto", plan_of(one_class, 1), 8, 1), one_class, 1, 8);
  m.set_slots(0, 4);
  for (i64 e : {0, 1}) m.step(0, {e});
  for (i64 e : {2, 3}) m.step(1, {e});
  for (int i = 0; i < 9; i++) m.policy->on_layer(0, 1);  // layer 0 is worth less
  CHECK(m.policy->choose_victim(1) == key_of(1, 2));
  for (i64 e : {2, 3}) m.policy->on_expect(key_of(1, e), .9f);
  CHECK(m.policy->choose_victim(1)->moe_layer == 0);
}

TEST_CASE("auto learns which of its counts to believe") {
  // Layer 0: always the same habits. Layer 1: every expert twice in a row, then not for long.
  std::vector<i64> one_class(2, 0);
  ExpertCache cache(plan_of(one_class, 1), 64, 1, std::vector<f64>{.5, .99});
  cache.on_capacity(0, 128);
  Rng rng(7);
  for (int t = 0; t < 2000; t++) {
    cache.on_layer(0, 1);
    cache.on_use(key_of(0, rng.below(6)), 1, 1.f);
    cache.on_layer(1, 1);
    cache.on_use(key_of(1, t / 2 % 64), 1, 1.f);
  }
  CHECK(cache.shares(0)[1] > .9);
  CHECK(cache.shares(1)[0] > cache.shares(0)[0] + .2);
  // Six of 64 experts share all uses: what is foretold adds up to one use per token.
  f64 sum = 0;
  for (i64 e = 0; e < 64; e++) sum += cache.probability(key_of(0, e));
  CHECK(sum == doctest::Approx(1).epsilon(.05));
}

TEST_CASE("what a prompt's piece used counts as if its tokens had used it all through, one by one") {
  std::vector<i64> one_class(1, 0);
  for (const char* name : {"auto", "ema"}) {
    CAPTURE(std::string(name));
    auto make = [&] { return make_policy(name, plan_of(one_class, 1), 8, 1); };
    auto at_once = make(), one_by_one = make();
    auto probability = [](ResidencyPolicy& policy, i32 e) { return dynamic_cast<ExpertCache&>(policy).probability({0, ExpertId(e)}); };
    for (int piece = 0; piece < 2; piece++) {
      at_once->on_layer(0, 256);
      at_once->on_use({0, ExpertId(0)}, 192, 1.f);
      at_once->on_use({0, ExpertId(1)}, 64, 1.f);
      CHECK(probability(*at_once, 0) == doctest::Approx(.75).epsilon(1e-3));
      CHECK(probability(*at_once, 1) == doctest::Approx(.25).epsilon(1e-3));
    }
    for (int t = 0; t < 512; t++) {
      one_by_one->on_layer(0, 1);
      one_by_one->on_use({0, ExpertId(t % 4 == 0)}, 1, 1.f);
    }
    // What comes then weighs the same after either.
    for (auto* policy : {at_once.get(), one_by_one.get()}) {
      for (int t = 0; t < 24; t++) {
        policy->on_layer(0, 1);
        policy->on_use({0, ExpertId(2)}, 1, 1.f);
      }
    }
    for (i32 e = 0; e < 3; e++) CHECK(std::abs(probability(*at_once, e) - probability(*one_by_one, e)) < .2);
  }
}

TEST_CASE("popularity is what a policy begins with, and fades as its own tokens come") {
  std::vector<i64> one_class(1, 0);
  Plan plan = plan_of(one_class, 1);
  Popularity known = some_popularity(1, 8);
  for (const char* name : {"auto", "ema"}) {
    CAPTURE(std::string(name));
    auto policy = make_policy(name, plan, 8, 1, &known);
    auto& cache = dynamic_cast<ExpertCache&>(*policy);
    for (i64 e = 0; e < 8; e++) CHECK(cache.probability({0, ExpertId(e)}) == doctest::Approx(.01 * static_cast<f64>(e + 1)).epsilon(1e-4));
    for (int token = 0; token < 400; token++) {
      cache.on_layer(0, 1);
      cache.on_use({0, ExpertId(token % 2)}, 1, 1.f);
    }
    CHECK(cache.probability({0, ExpertId(0)}) > .3);
    CHECK(cache.probability({0, ExpertId(7)}) < .02);  // .08 at first
  }
}

TEST_CASE("static keeps the most popular, whatever is used") {
  Model m(any_policy("static", plan_of({0}, 1), 8, 1), {0}, 1, 8);
  m.set_slots(0, 3);
  for (i64 e : {7, 6, 5}) m.step(0, {e});
  for (int i = 0; i < 20; i++) m.step(0, {i % 3});  // pass through the slot of the least popular, 5
  CHECK(m.step(0, {7}) == 1);
  CHECK(m.step(0, {6}) == 1);
  CHECK(m.step(0, {5}) == 0);
  CHECK_THROWS_WITH_AS(make_policy("static", plan_of({0}, 1), 8, 1), doctest::Contains("--popularity FILE"), Error);
}
