#include "scheduler/policy/make_policy.h"

#include <array>

#include "kernels/base/error.h"
#include "scheduler/policy/classic_caches.h"
#include "scheduler/policy/expert_cache.h"
#include "scheduler/policy/lru_cache.h"

namespace stoker {

namespace {

constexpr std::array kRows = {
    PolicyRow{"auto", "decayed counts of several half-lives, mixed by how well each foretells its layer"},
    PolicyRow{"ema", "one decayed count, half-life 32 tokens"},
    PolicyRow{"lru", "least recently used"},
    PolicyRow{"lfu", "least often used since the start"},
    PolicyRow{"slru", "segmented LRU: a fifth of the slots for what was used once"},
    PolicyRow{"s3fifo", "three FIFO queues: small, main, and what has left"},
    PolicyRow{"least-stale", "what the token has passed by before what is ahead of it"},
    PolicyRow{"mrs", "sum of gate weights that is halved every token"},
    PolicyRow{"static", "the most popular of a --popularity file, whatever the text is", true},
};

constexpr std::array kAuto = {.5, .9, .97, .99, .998};
constexpr std::array kEma = {.97857206};  // 2^(-1/32)

template <class Cache, class... More>
std::unique_ptr<ResidencyPolicy> make(const Plan& plan, i64 experts, i64 top_k, const More&... more) {
  return std::make_unique<Cache>(plan, experts, top_k, more...);
}

}  // namespace

std::span<const PolicyRow> policy_rows() { return kRows; }

std::unique_ptr<ResidencyPolicy> make_policy(std::string_view name, const Plan& plan, i64 experts, i64 top_k,
                                             const Popularity* known) {
  if (name == "auto") return make<ExpertCache>(plan, experts, top_k, kAuto, known);
  if (name == "ema") return make<ExpertCache>(plan, experts, top_k, kEma, known);
  if (name == "static") {
    if (known == nullptr) fail("--policy static: needs to know which experts are popular: give --popularity FILE");
    return make<StaticCache>(plan, experts, top_k, *known);
  }
  if (name == "lru") return make<LruCache>(plan, experts, top_k);
  if (name == "lfu") return make<LfuCache>(plan, experts, top_k);
  if (name == "slru") return make<SlruCache>(plan, experts, top_k);
  if (name == "s3fifo") return make<S3FifoCache>(plan, experts, top_k);
  if (name == "least-stale") return make<LeastStaleCache>(plan, experts, top_k);
  if (name == "mrs") return make<MrsCache>(plan, experts, top_k);
  std::string names;
  for (const PolicyRow& row : kRows) names += fmt::format("{}{}", names.empty() ? "" : ", ", row.name);
  fail("--policy {}: no such residency policy; there are {}", name, names);
}

}  // namespace stoker
