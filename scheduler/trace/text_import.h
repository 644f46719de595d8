// Routing that other programs wrote as text, as trace records.
#pragma once

#include <functional>
#include <string>

#include "scheduler/trace/trace_format.h"

namespace stoker {

struct TraceImport {
  i64 records = 0;
  i64 incomplete = 0;  // tokens that lack a layer or a rank: left out, because a record has all
  TraceHeader header;
};

// What makes a writer once the shape is known, and what takes the records.
struct TraceSink {
  std::function<void(const TraceHeader&)> open;
  std::function<void(const TraceRecord&)> record;
};

// "turn,phase,step,layer,slot,expert,weight[,...]", one line per chosen expert, the lines of a turn's phase together;
// lines that start with # are notes, of which n_expert=N is understood. Phase 0 is a prompt. A column "expert_bytes" says what was
// read: 0 means that the expert was in memory. May be gzip-compressed. Throws Error with the line's number.
TraceImport import_csv(const std::string& path, const TraceSink& sink);

// A folder of ESFT's files, one per layer, the layer's number last in the name: one line per sequence, the chosen ids
// (`top_k` per token), an empty field, and the weights in the same order, all separated by tabs.
TraceImport import_esft(const std::string& folder, i64 top_k, i64 experts, const TraceSink& sink);

}  // namespace stoker
