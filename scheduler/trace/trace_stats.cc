#include "scheduler/trace/trace_stats.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "kernels/base/error.h"

namespace stoker {

namespace {

constexpr i64 kNever = std::numeric_limits<i64>::max();

struct Routing {
  std::vector<std::vector<u16>> ids;  // [layers][tokens, top_k]
  std::vector<i64> previous;          // the record of the position before, in the same sequence; -1: there is none
};

f64 top_share(const std::vector<u16>& ids, i64 experts, i64 percent) {
  std::vector<i64> counts(static_cast<size_t>(experts));
  for (u16 id : ids) counts[id]++;
  std::sort(counts.begin(), counts.end(), std::greater<>());
  f64 wanted = static_cast<f64>(experts * percent) / 100, sum = 0;
  for (size_t i = 0; i < counts.size() && wanted > 0; i++, wanted -= 1) sum += std::min(wanted, 1.0) * static_cast<f64>(counts[i]);
  return sum / static_cast<f64>(ids.size());
}

// earlier[t]: the record `lag` positions before record t; -1: there is none.
std::vector<i64> records_before(const std::vector<i64>& previous, i64 lag) {
  std::vector<i64> earlier(previous.size());
  std::iota(earlier.begin(), earlier.end(), 0);
  for (i64 i = 0; i < lag; i++)
    for (i64& t : earlier) t = t < 0 ? t : previous[static_cast<size_t>(t)];
  return earlier;
}

f64 reuse(const std::vector<u16>& ids, i64 top_k, const std::vector<i64>& earlier) {
  i64 again = 0, slots = 0;
  for (size_t t = 0; t < earlier.size(); t++) {
    if (earlier[t] < 0) continue;
    auto before = ids.begin() + earlier[t] * top_k, now = ids.begin() + static_cast<i64>(t) * top_k;
    slots += top_k;
    for (i64 k = 0; k < top_k; k++) again += std::find(before, before + top_k, now[k]) != before + top_k ? 1 : 0;
  }
  return slots == 0 ? 0 : static_cast<f64>(again) / static_cast<f64>(slots);
}

RoutingStats mean_of(const std::vector<RoutingStats>& layers) {
  RoutingStats mean;
  f64 part = 1 / static_cast<f64>(layers.size());
  for (const RoutingStats& layer : layers) {
    for (size_t i = 0; i < mean.top_share.size(); i++) mean.top_share[i] += layer.top_share[i] * part;
    for (size_t i = 0; i < mean.reuse.size(); i++) mean.reuse[i] += layer.reuse[i] * part;
    mean.belady += layer.belady * part;
    mean.lru += layer.lru * part;
    mean.used += layer.used * part;
    mean.stall_ms += layer.stall_ms * part;
    mean.foreseen += layer.foreseen * part;
  }
  return mean;
}

// What recorded runs tell beside their routes, by layer.
struct Details {
  explicit Details(i64 layers) : stall_ms(static_cast<size_t>(layers)), found(stall_ms.size()), guessed(stall_ms.size()) {}

  void add(const TraceHeader& h, const TraceRecord& r) {
    for (size_t l = 0; l < r.stalls.size(); l++) stall_ms[l] += static_cast<f64>(r.stalls[l]) * .01;
    i64 width = std::min(h.guesses, h.top_k);
    for (i64 l = 0; l < h.layers && width > 0; l++) {
      if (r.likelihoods[static_cast<size_t>(l * h.guesses)] <= 0) continue;
      auto used = r.ids.begin() + l * h.top_k;
      for (i64 i = 0; i < width; i++) {
        size_t at = static_cast<size_t>(l * h.guesses + i);
        bool hit = std::find(used, used + h.top_k, r.guesses[at]) != used + h.top_k;
        found[static_cast<size_t>(l)] += hit && r.likelihoods[at] > 0;
      }
      guessed[static_cast<size_t>(l)] += h.top_k;
    }
  }

  std::vector<f64> stall_ms;       // of all records
  std::vector<i64> found, guessed;
};

Routing read_all(TraceSource& source, TraceStats& stats, Details& details) {
  const TraceHeader& h = source.header();
  struct Last {
    i64 record, position;
  };
  std::unordered_map<i64, Last> last;
  Routing routing;
  routing.ids.resize(static_cast<size_t>(h.layers));
  stats.rank_shares.resize(static_cast<size_t>(h.top_k));
  for (TraceRecord record; source.next(record); stats.records++) {
    stats.prompt_records += record.phase == TracePhase::prompt ? 1 : 0;
    auto [found, fresh] = last.try_emplace(record.sequence, Last{-1, -1});
    bool follows = !fresh && found->second.position + 1 == record.position;
    routing.previous.push_back(follows ? found->second.record : -1);
    found->second = {stats.records, record.position};
    for (i64 l = 0; l < h.layers; l++) {
      auto first = record.ids.begin() + l * h.top_k;
      std::vector<u16>& ids = routing.ids[static_cast<size_t>(l)];
      ids.insert(ids.end(), first, first + h.top_k);
    }
    f64 sum = std::accumulate(record.weights.begin(), record.weights.end(), 0.0);
    for (size_t i = 0; i < record.weights.size() && sum > 0; i++)
      stats.rank_shares[i % stats.rank_shares.size()] += record.weights[i] / sum;
    for (u8 tier : record.served) stats.tiers[std::min<size_t>(tier, stats.tiers.size() - 1)]++;
    details.add(h, record);
  }
  if (stats.records == 0) fail("the trace has no record");
  for (f64& share : stats.rank_shares) share /= static_cast<f64>(stats.records);
  stats.sequences = static_cast<i64>(last.size());
  for (f64& share : stats.tiers) share /= static_cast<f64>(stats.records * h.slots());
  stats.served = stats.tiers[1] + stats.tiers[2];
  return routing;
}

}  // namespace

TraceStats measure_trace(TraceSource& source, i64 slots) {
  const TraceHeader& h = source.header();
  TraceStats stats;
  stats.slots = slots;
  Details details(h.layers);
  Routing routing = read_all(source, stats, details);
  std::array<std::vector<i64>, kReuseLags.size()> earlier;
  for (size_t i = 0; i < earlier.size(); i++) earlier[i] = records_before(routing.previous, kReuseLags[i]);
  for (const std::vector<u16>& ids : routing.ids) {
    RoutingStats& layer = stats.layers.emplace_back();
    for (size_t i = 0; i < kTopPercents.size(); i++) layer.top_share[i] = top_share(ids, h.experts, kTopPercents[i]);
    for (size_t i = 0; i < kReuseLags.size(); i++) layer.reuse[i] = reuse(ids, h.top_k, earlier[i]);
    std::vector<bool> used(static_cast<size_t>(h.experts));
    for (u16 id : ids) used[id] = true;
    layer.used = static_cast<f64>(std::count(used.begin(), used.end(), true));
    layer.belady = belady_hit_rate(ids, h.top_k, h.experts, slots);
    layer.lru = lru_hit_rate(ids, h.top_k, h.experts, slots);
    size_t l = stats.layers.size() - 1;
    layer.stall_ms = details.stall_ms[l] / static_cast<f64>(stats.records);
    layer.foreseen = details.guessed[l] > 0 ? static_cast<f64>(details.found[l]) / static_cast<f64>(details.guessed[l]) : 0;
  }
  stats.mean = mean_of(stats.layers);
  return stats;
}

// All of a token's experts are looked up first; then the cache keeps, of what it had and what was read, the experts
// that are wanted again soonest.
f64 belady_hit_rate(const std::vector<u16>& ids, i64 top_k, i64 experts, i64 slots) {
  std::vector<i64> next_use(ids.size());  // the token that wants the same expert again
  std::vector<i64> coming(static_cast<size_t>(experts), kNever);
  for (i64 i = static_cast<i64>(ids.size()) - 1; i >= 0; i--) {
    next_use[static_cast<size_t>(i)] = coming[ids[static_cast<size_t>(i)]];
    coming[ids[static_cast<size_t>(i)]] = i / top_k;
  }
  std::vector<std::pair<i64, u16>> cache;  // next use, expert
  std::vector<bool> resident(static_cast<size_t>(experts));
  i64 hits = 0;
  for (size_t first = 0; first < ids.size(); first += static_cast<size_t>(top_k)) {
    i64 now = static_cast<i64>(first) / top_k;
    for (size_t i = first; i < first + static_cast<size_t>(top_k); i++) hits += resident[ids[i]] ? 1 : 0;
    std::erase_if(cache, [&](const auto& entry) { return entry.first <= now; });  // used now: comes in again below
    for (size_t i = first; i < first + static_cast<size_t>(top_k); i++) cache.push_back({next_use[i], ids[i]});
    for (const auto& entry : cache) resident[entry.second] = false;
    size_t keep = std::min(cache.size(), static_cast<size_t>(slots));
    std::nth_element(cache.begin(), cache.begin() + static_cast<i64>(keep), cache.end());
    for (size_t i = first; i < first + static_cast<size_t>(top_k); i++) resident[ids[i]] = false;
    cache.resize(keep);
    for (const auto& entry : cache) resident[entry.second] = true;
  }
  return static_cast<f64>(hits) / static_cast<f64>(ids.size());
}

f64 lru_hit_rate(const std::vector<u16>& ids, i64 top_k, i64 experts, i64 slots) {
  std::vector<i64> used(static_cast<size_t>(experts), -1);  // when last; -1: not resident
  i64 hits = 0, resident = 0, clock = 0;
  for (size_t first = 0; first < ids.size(); first += static_cast<size_t>(top_k)) {
    size_t end = first + static_cast<size_t>(top_k);
    for (size_t i = first; i < end; i++) hits += used[ids[i]] >= 0 ? 1 : 0;
    for (size_t i = end; i > first; i--) {  // the best rank is the last used
      i64& when = used[ids[i - 1]];
      resident += when < 0 ? 1 : 0;
      when = clock++;
    }
    for (; resident > slots; resident--) {
      auto oldest = used.end();
      for (auto u = used.begin(); u != used.end(); ++u)
        if (*u >= 0 && (oldest == used.end() || *u < *oldest)) oldest = u;
      *oldest = -1;
    }
  }
  return static_cast<f64>(hits) / static_cast<f64>(ids.size());
}

}  // namespace stoker
