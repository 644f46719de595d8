#include "scheduler/policy/lru_cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/base/rng.h"
#include "tests/scheduler/policy/plan_of.h"

using namespace stoker;
using stoker::test::plan_of;

namespace {

// Slots and reads as the scheduler would have them, around a real LruCache.
struct Model {
  struct Expert {
    bool resident = false;
    int pins = 0;
    i64 used = 0;  // when
  };
  Model(const std::vector<i64>& class_of_layer, i64 classes, i64 e, i64 k)
      : plan(plan_of(class_of_layer, classes)), experts(e), top_k(k), cache(plan, e, k) {
    slots.resize(static_cast<size_t>(classes));
    used_slots.resize(static_cast<size_t>(classes));
    state.resize(class_of_layer.size(), std::vector<Expert>(static_cast<size_t>(e)));
  }
  i64 class_of(i64 layer) const { return plan.class_of_moe_layer[static_cast<size_t>(layer)]; }
  Expert& at(ExpertKey key) {
    return state[static_cast<size_t>(key.moe_layer)][static_cast<size_t>(key.expert.value)];
  }
  void set_slots(i64 c, i64 n) {
    slots[static_cast<size_t>(c)] = n;
    cache.on_capacity(c, n);
  }
  i64 floor_of(i64 c) const {
    i64 layers = std::count(plan.class_of_moe_layer.begin(), plan.class_of_moe_layer.end(), c);
    return std::clamp<i64>((slots[static_cast<size_t>(c)] - top_k) / layers, 0, top_k);
  }
  i64 resident_in(i64 layer) const {
    const auto& row = state[static_cast<size_t>(layer)];
    return std::count_if(row.begin(), row.end(), [](const Expert& e) { return e.resident; });
  }
  void use(ExpertKey key) {
    cache.on_layer(key.moe_layer, 1);
    cache.on_use(key, 1, 1.f);
    at(key).used = ++now;
  }
  // One slot for `key`: 'f'ree, taken from a 'v'ictim, or 'n'one to be had. Checks the victim against the
  // contract.
  char admit(ExpertKey key) {
    i64 c = class_of(key.moe_layer);
    char how = 'f';
    if (used_slots[static_cast<size_t>(c)] == slots[static_cast<size_t>(c)]) {
      std::optional<ExpertKey> victim = cache.choose_victim(key.moe_layer);
      CHECK(victim == cache.choose_victim(key.moe_layer));  // asking changes nothing
      CHECK(victim == expected_victim(key.moe_layer));
      if (!victim) return 'n';
      how = 'v';
      Expert& loser = at(*victim);
      REQUIRE(loser.resident);
      REQUIRE(loser.pins == 0);
      REQUIRE(class_of(victim->moe_layer) == c);
      cache.on_evict(*victim);
      loser.resident = false;
      if (victim->moe_layer != key.moe_layer) CHECK(resident_in(victim->moe_layer) >= floor_of(c));
    } else {
      used_slots[static_cast<size_t>(c)]++;
    }
    cache.on_admit(key);
    at(key) = {true, 1, ++now};
    CHECK(used_slots[static_cast<size_t>(c)] <= slots[static_cast<size_t>(c)]);
    return how;
  }
  // By brute force: the least recently used of all that may go.
  std::optional<ExpertKey> expected_victim(i64 layer) {
    std::optional<ExpertKey> best;
    for (i64 l = 0; l < static_cast<i64>(state.size()); l++) {
      if (class_of(l) != class_of(layer)) continue;
      if (l != layer && resident_in(l) <= floor_of(class_of(l))) continue;
      for (i64 e = 0; e < experts; e++) {
        ExpertKey key{l, ExpertId(e)};
        if (!at(key).resident || at(key).pins > 0) continue;
        if (!best || at(key).used < at(*best).used) best = key;
      }
    }
    return best;
  }

  Plan plan;
  i64 experts, top_k, now = 0;
  std::vector<i64> slots, used_slots;
  std::vector<std::vector<Expert>> state;
  LruCache cache;
};

// Random tokens through a random model; returns what happened, as one string.
std::string random_run(u64 seed) {
  Rng rng(seed);
  i64 layers = 1 + rng.below(6), classes = 1 + rng.below(std::min<i64>(3, layers)),
      experts = 4 + rng.below(12);
  i64 top_k = 1 + rng.below(4);
  std::vector<i64> class_of_layer;
  for (i64 l = 0; l < layers; l++) class_of_layer.push_back(l < classes ? l : rng.below(classes));
  Model m(class_of_layer, classes, experts, top_k);
  for (i64 c = 0; c < classes; c++) m.set_slots(c, top_k);
  std::string story;
  for (int token = 0; token < 60; token++) {
    if (rng.below(4) == 0) {  // the arena grows
      i64 c = rng.below(classes);
      m.set_slots(c, m.slots[static_cast<size_t>(c)] + rng.below(5));
    }
    for (i64 l = 0; l < layers; l++) {
      // Often as many as a token needs, sometimes as many as a prompt chunk does.
      i64 wanted = rng.below(5) == 0 ? 1 + rng.below(experts) : top_k;
      i64 first = rng.below(experts);
      std::vector<ExpertKey> leased;
      i64 got = 0;
      for (i64 i = 0; i < wanted; i++) {
        ExpertKey key{l, ExpertId((first + i) % experts)};
        m.use(key);
        if (!m.at(key).resident) continue;
        m.cache.on_pin(key);
        m.at(key).pins++;
        leased.push_back(key);
      }
      i64 hits = static_cast<i64>(leased.size());
      for (i64 i = 0; i < wanted; i++) {
        ExpertKey key{l, ExpertId((first + i) % experts)};
        if (m.at(key).resident) continue;
        char how = m.admit(key);
        story += how;
        if (how == 'n') break;
        leased.push_back(key);
        got++;
      }
      // What one token needs always finds room at the same time.
      if (wanted <= top_k) CHECK(hits + got == wanted);
      for (ExpertKey key : leased) {
        m.cache.on_unpin(key);
        m.at(key).pins--;
      }
    }
  }
  return story;
}

}  // namespace

TEST_CASE("random runs stay within the slots, keep the floors and never give up what is pinned") {
  i64 victims = 0, none = 0;
  for (u64 seed = 1; seed <= 60; seed++) {
    INFO("seed " << seed);
    std::string story = random_run(seed);
    CHECK(story == random_run(seed));
    victims += std::count(story.begin(), story.end(), 'v');
    none += std::count(story.begin(), story.end(), 'n');
  }
  CHECK(victims > 1000);  // the runs are about something
  CHECK(none > 10);
}

TEST_CASE("what only fills a slot leaves before what was wanted, until it is wanted itself") {
  Model m({0}, 1, 8, 2);
  m.set_slots(0, 4);
  for (i64 e : {0, 1}) {
    m.use({0, ExpertId(e)});
    m.cache.on_admit({0, ExpertId(e)});
    m.cache.on_unpin({0, ExpertId(e)});
  }
  for (i64 e : {2, 3}) {
    m.cache.on_fill({0, ExpertId(e)});
    m.cache.on_unpin({0, ExpertId(e)});
  }
  CHECK(m.cache.choose_victim(0)->expert == ExpertId(3));
  m.cache.on_evict({0, ExpertId(3)});
  CHECK(m.cache.choose_victim(0)->expert == ExpertId(2));
  m.use({0, ExpertId(2)});
  CHECK(m.cache.choose_victim(0)->expert == ExpertId(0));
}

TEST_CASE("layers keep experts that plain LRU would lose on every round") {
  // 4 layers, top-2, 7 slots: one short of a token's 8. Each layer wants the same two experts for every
  // token.
  Model m({0, 0, 0, 0}, 1, 8, 2);
  m.set_slots(0, 7);
  i64 hits = 0;
  for (int token = 0; token < 10; token++) {
    for (i64 l = 0; l < 4; l++) {
      for (i64 e = 0; e < 2; e++) m.use({l, ExpertId(e)});
      for (i64 e = 0; e < 2; e++) {
        ExpertKey key{l, ExpertId(e)};
        if (m.at(key).resident) {
          hits += token > 0;
          continue;
        }
        m.admit(key);
        m.cache.on_unpin(key);
        m.at(key).pins--;
      }
    }
  }
  CHECK(hits >= 9 * 4);  // half of them; plain LRU: none
}
