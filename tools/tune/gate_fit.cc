#include "tools/tune/gate_fit.h"

#include <algorithm>
#include <vector>

#include "scheduler/trace/trace_reader.h"

namespace stoker {

namespace {

constexpr i64 kMostRecords = 96;  // some thousand choices: recall to a point or so
constexpr int kSteps = 8;         // of the bisection
constexpr f64 kLeast = .2;

f64 emulated_recall(const TraceHeader& shape, const std::vector<TraceRecord>& records, i64 distance, f64 correlation) {
  LookaheadQuality quality;
  quality.fill(correlation);
  EmulatedLookahead gates(shape, {.quality = quality, .distances = distance});
  for (const TraceRecord& record : records) gates.add(record);
  i64 found = 0, all = 0;
  for (size_t r = 0; r < records.size(); r++)
    for (i64 layer = distance; layer < shape.layers; layer++) {
      std::span<const RankedExpert> ranking = gates.ranking(static_cast<i64>(r), layer, distance);
      ranking = ranking.first(std::min(ranking.size(), static_cast<size_t>(shape.top_k)));
      auto begin = records[r].ids.begin() + layer * shape.top_k, end = begin + shape.top_k;
      for (const RankedExpert& e : ranking) found += std::find(begin, end, static_cast<u16>(e.expert.value)) != end;
      all += shape.top_k;
    }
  return all > 0 ? static_cast<f64>(found) / static_cast<f64>(all) : 0;
}

f64 correlation_for(const TraceHeader& shape, const std::vector<TraceRecord>& records, i64 distance, f64 recall) {
  f64 low = kLeast, high = 1;
  for (int step = 0; step < kSteps; step++) {
    f64 middle = (low + high) / 2;
    (emulated_recall(shape, records, distance, middle) < recall ? low : high) = middle;
  }
  return (low + high) / 2;
}

}  // namespace

LookaheadQuality fit_gates(const std::string& trace, const GateRecall& recall, const LookaheadQuality& otherwise) {
  TraceReader reader(trace);
  std::vector<TraceRecord> records;
  for (TraceRecord record; static_cast<i64>(records.size()) < kMostRecords && reader.next(record);) records.push_back(record);
  LookaheadQuality quality = otherwise;
  for (i64 distance = 1; distance <= Predictor::kMaxDistance; distance++) {
    size_t d = static_cast<size_t>(distance - 1);
    bool measured = recall[d] > 0 && reader.header().layers > distance && !records.empty();
    if (measured) quality[d] = correlation_for(reader.header(), records, distance, recall[d]);
  }
  return quality;
}

}  // namespace stoker
