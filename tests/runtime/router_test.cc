// The gate against an independent, slow way of saying the same: sort everything, keep the front.
#include "runtime/router.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/base/rng.h"
#include "kernels/device/stream.h"

namespace stoker {
namespace {

struct Choice {
  std::vector<i32> ids;
  std::vector<f64> weights;
};

std::vector<i64> by_score(const std::vector<f64>& scores) {
  std::vector<i64> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](i64 a, i64 b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  return order;
}

// DeepSeek-V3, arXiv 2412.19437, section 2.1.2, and V2's variant (arXiv 2405.04434, section 2.2.2).
Choice slow_route(const Hparams& h, const std::vector<f64>& logits, const f32* bias) {
  size_t experts = logits.size(), groups = static_cast<size_t>(h.groups), size = experts / groups;
  std::vector<f64> p(experts), score(experts);
  f64 sum = 0;
  for (size_t e = 0; e < experts; e++) sum += std::exp(logits[e]);
  for (size_t e = 0; e < experts; e++) {
    p[e] = h.expert_sigmoid ? 1 / (1 + std::exp(-logits[e])) : std::exp(logits[e]) / sum;
    score[e] = p[e] + (bias != nullptr ? bias[e] : 0);
  }
  std::vector<f64> group_score;
  for (size_t g = 0; g < groups; g++) {
    std::vector<f64> members(score.begin() + static_cast<i64>(g * size), score.begin() + static_cast<i64>((g + 1) * size));
    std::sort(members.rbegin(), members.rend());
    group_score.push_back(h.group_score_is_max || size == 1 ? members[0] : members[0] + members[1]);
  }
  std::vector<i64> best_groups = by_score(group_score);
  best_groups.resize(static_cast<size_t>(h.groups_used));

  Choice choice;
  f64 chosen_sum = 0;
  for (i64 e : by_score(score)) {
    if (std::find(best_groups.begin(), best_groups.end(), e / static_cast<i64>(size)) == best_groups.end()) continue;
    if (static_cast<i64>(choice.ids.size()) == h.top_k) break;
    choice.ids.push_back(static_cast<i32>(e));
    choice.weights.push_back(p[static_cast<size_t>(e)]);
    chosen_sum += choice.weights.back();
  }
  for (f64& w : choice.weights) w *= h.expert_scale / (h.expert_normalise ? chosen_sum : 1);
  return choice;
}

Hparams shape(i64 experts, i64 top_k, i64 groups, i64 used) {
  Hparams h;
  h.hidden = 24;
  h.experts = experts;
  h.top_k = top_k;
  h.groups = groups;
  h.groups_used = used;
  h.expert_scale = 2.5f;
  return h;
}

class Fixture {
 public:
  explicit Fixture(const Hparams& hparams, u64 seed = 3) : h(hparams), rng_(seed) {
    matrix_ = random(h.experts * h.hidden, 0.5);
    bias = random(h.experts, 0.3);
    weights.router = {matrix_.data(), BlockType::F32, h.experts, h.hidden};
  }

  std::vector<f32> random(i64 count, f64 deviation) {
    std::vector<f32> values(static_cast<size_t>(count));
    for (f32& v : values) v = static_cast<f32>(rng_.normal() * deviation);
    return values;
  }

  std::vector<f64> logits(const f32* x) const {
    std::vector<f64> result(static_cast<size_t>(h.experts));
    for (i64 e = 0; e < h.experts; e++)
      for (i64 c = 0; c < h.hidden; c++)
        result[static_cast<size_t>(e)] += static_cast<f64>(matrix_[static_cast<size_t>(e * h.hidden + c)]) * x[c];
    return result;
  }

  void check(i64 tokens) {
    std::vector<f32> x = random(tokens * h.hidden, 1);
    std::vector<i32> ids(static_cast<size_t>(tokens * h.top_k), -1);
    std::vector<f32> gate_weights(ids.size(), -1);
    GateRouter router(cpu_ops(), h, tokens);
    router.route({stream_, LayerId(0), weights, x.data(), tokens}, ids.data(), gate_weights.data());
    for (i64 t = 0; t < tokens; t++) {
      CAPTURE(t);
      Choice want = slow_route(h, logits(x.data() + t * h.hidden), weights.router_bias);
      REQUIRE(static_cast<i64>(want.ids.size()) == h.top_k);
      for (i64 k = 0; k < h.top_k; k++) {
        CAPTURE(k);
        size_t at = static_cast<size_t>(t * h.top_k + k);
        CHECK(ids[at] == want.ids[static_cast<size_t>(k)]);
        CHECK(gate_weights[at] == doctest::Approx(want.weights[static_cast<size_t>(k)]).epsilon(1e-5));
      }
    }
  }

  Hparams h;
  LayerWeights weights;
  std::vector<f32> bias;

 private:
  Rng rng_;
  std::vector<f32> matrix_;
  WorkerPool workers_{{.workers = 2, .pin = false}};
  Stream stream_{workers_, best_isa_level()};
};

}  // namespace

TEST_CASE("the gate chooses as the papers say, with and without groups, bias, norm and sigmoid") {
  struct Size {
    i64 experts, top_k, groups, used;
  };
  for (Size s : {Size{8, 3, 1, 1}, Size{64, 6, 1, 1}, Size{32, 4, 8, 4}, Size{256, 8, 8, 4}, Size{160, 6, 8, 3},
                 Size{16, 16, 1, 1}, Size{12, 3, 12, 5}, Size{384, 8, 1, 1}, Size{5, 1, 1, 1}})
    for (int variant = 0; variant < 16; variant++) {
      Hparams h = shape(s.experts, s.top_k, s.groups, s.used);
      h.expert_sigmoid = (variant & 1) != 0;
      h.expert_normalise = (variant & 2) != 0;
      h.group_score_is_max = (variant & 4) != 0;
      CAPTURE(s.experts);
      CAPTURE(s.groups);
      CAPTURE(variant);
      Fixture fixture(h);
      if ((variant & 8) != 0) fixture.weights.router_bias = fixture.bias.data();
      fixture.check(7);
    }
}

TEST_CASE("the bias decides who is chosen but not with which weight") {
  Hparams h = shape(4, 1, 1, 1);
  h.expert_sigmoid = true;
  h.expert_scale = 1;
  Fixture fixture(h);
  std::vector<f32> bias = {0, 0, 5, 0};
  fixture.weights.router_bias = bias.data();
  std::vector<f32> x(static_cast<size_t>(h.hidden), 0.f);
  i32 id = -1;
  f32 weight = -1;
  WorkerPool workers({.workers = 1, .pin = false});
  Stream stream(workers, best_isa_level());
  GateRouter(cpu_ops(), h, 1).route({stream, LayerId(0), fixture.weights, x.data(), 1}, &id, &weight);
  CHECK(id == 2);
  CHECK(weight == 0.5f);
}

TEST_CASE("rows that are no numbers still get distinct experts of the layer") {
  Hparams h = shape(8, 4, 4, 2);
  h.expert_sigmoid = true;
  Fixture fixture(h);
  std::vector<f32> x(static_cast<size_t>(h.hidden), std::numeric_limits<f32>::quiet_NaN());
  std::vector<i32> ids(4, -1);
  std::vector<f32> gate_weights(4);
  WorkerPool workers({.workers = 1, .pin = false});
  Stream stream(workers, best_isa_level());
  GateRouter(cpu_ops(), h, 1).route({stream, LayerId(0), fixture.weights, x.data(), 1}, ids.data(), gate_weights.data());
  std::sort(ids.begin(), ids.end());
  CHECK(std::unique(ids.begin(), ids.end()) == ids.end());
  CHECK(ids.front() >= 0);
  CHECK(ids.back() < 8);
}

}  // namespace stoker
