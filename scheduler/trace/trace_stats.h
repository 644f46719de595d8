// What a trace says about caching: how unequal experts are, how often tokens repeat them, and the best any cache of a
// given size could do. Plain data; one owner.
#pragma once

#include <array>
#include <vector>

#include "scheduler/trace/trace_format.h"

namespace stoker {

constexpr std::array<i64, 4> kTopPercents = {10, 20, 30, 50};
constexpr std::array<i64, 4> kReuseLags = {1, 4, 16, 64};

struct RoutingStats {
  std::array<f64, kTopPercents.size()> top_share{};  // of slots that go to the hottest 10, 20, 30, 50 % of experts
  std::array<f64, kReuseLags.size()> reuse{};        // share of a token's experts that the token 1, 4, .. before used
  f64 belady = 0;     // hit rate of the best cache there can be, one of `slots` per layer, which may also not keep
  f64 lru = 0;        // of one that keeps the last used
  f64 used = 0;       // experts that some token used
  f64 stall_ms = 0;   // per token, of a trace that tells
  f64 foreseen = 0;   // share of the used experts that are among the best top-k guesses, of those tokens that have some
};

struct TraceStats {
  i64 records = 0, prompt_records = 0;
  i64 sequences = 0;
  i64 slots = 0;                      // the caches' size per layer
  std::vector<RoutingStats> layers;
  RoutingStats mean;                  // over layers
  std::vector<f64> rank_shares;       // [top_k] of a token's gate weight, mean
  f64 served = 0;                     // share of slots that were in RAM or on a device, of a trace that tells
  std::array<f64, 4> tiers{};         // likewise on disk, in RAM, on a device, on their way
};

// Reads the source to its end; all ids are kept in memory. Reuse counts within a sequence, between positions that
// follow each other. The caches see records in the order of the file, and start empty.
TraceStats measure_trace(TraceSource& source, i64 slots);

// Hit rate over `ids` [tokens, top_k].
f64 belady_hit_rate(const std::vector<u16>& ids, i64 top_k, i64 experts, i64 slots);
f64 lru_hit_rate(const std::vector<u16>& ids, i64 top_k, i64 experts, i64 slots);

}  // namespace stoker
