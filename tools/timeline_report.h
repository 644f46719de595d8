// What a timeline (kernels/base/timeline.h) says, for people and as a chart.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/base/timeline.h"

namespace stoker {

// A line per lane: how long it was idle. Nothing when there are none.
void note_lanes(const std::vector<Timeline::LaneUse>& lanes);
// {"CPU": {"busy_seconds": .., "idle_share": ..}, ..}
nlohmann::ordered_json lanes_json(const std::vector<Timeline::LaneUse>& lanes);

// Chrome's trace format, which chrome://tracing and ui.perfetto.dev show: a thread per lane, microseconds from the first
// span. Throws Error.
void write_chrome_trace(const Timeline& timeline, const std::string& path);

}  // namespace stoker
