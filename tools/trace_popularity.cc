#include "tools/trace_popularity.h"

#include <algorithm>

#include "scheduler/trace/trace_format.h"

namespace stoker {

Popularity popularity_of(TraceSource& source) {
  const TraceHeader& h = source.header();
  Popularity popularity(h.layers, h.experts);
  std::vector<i32> ids(static_cast<size_t>(h.top_k));
  for (TraceRecord record; source.next(record);)
    for (i64 l = 0; l < h.layers; l++) {
      std::copy_n(record.ids.begin() + l * h.top_k, h.top_k, ids.begin());
      popularity.add(l, 1, ids);
    }
  return popularity;
}

}  // namespace stoker
