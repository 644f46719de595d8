#include "tools/timeline_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "tools/terminal.h"
#include "tools/text_file.h"

namespace stoker {

namespace {

f64 idle_share(const Timeline::LaneUse& use) {
  return use.window_ns > 0 ? 1 - static_cast<f64>(use.busy_ns) / static_cast<f64>(use.window_ns) : 1;
}

}  // namespace

void note_lanes(const std::vector<Timeline::LaneUse>& lanes) {
  for (const Timeline::LaneUse& use : lanes)
    note("lane {:<14} idle {:5.1f} %, busy {:.3f} s of {:.3f} s", use.lane, idle_share(use) * 100,
         static_cast<f64>(use.busy_ns) * 1e-9, static_cast<f64>(use.window_ns) * 1e-9);
}

nlohmann::ordered_json lanes_json(const std::vector<Timeline::LaneUse>& lanes) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const Timeline::LaneUse& use : lanes)
    json[use.lane] = {{"busy_seconds", static_cast<f64>(use.busy_ns) * 1e-9}, {"idle_share", idle_share(use)}};
  return json;
}

void write_chrome_trace(const Timeline& timeline, const std::string& path) {
  std::vector<Timeline::Span> spans = timeline.spans();
  std::vector<std::string> lanes = timeline.lanes();
  i64 start_ns = 0;
  if (!spans.empty())
    start_ns = std::min_element(spans.begin(), spans.end(), [](const auto& a, const auto& b) {
                 return a.begin_ns < b.begin_ns;
               })->begin_ns;
  std::string text = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n"
                     "{\"ph\": \"M\", \"pid\": 1, \"name\": \"process_name\", \"args\": {\"name\": \"stoker\"}}";
  for (size_t i = 0; i < lanes.size(); i++)
    fmt::format_to(std::back_inserter(text),
                   ",\n{{\"ph\": \"M\", \"pid\": 1, \"tid\": {0}, \"name\": \"thread_name\", \"args\": {{\"name\": \"{1}\"}}}}"
                   ",\n{{\"ph\": \"M\", \"pid\": 1, \"tid\": {0}, \"name\": \"thread_sort_index\", \"args\": "
                   "{{\"sort_index\": {0}}}}}",
                   i, lanes[i]);
  for (const Timeline::Span& span : spans)
    fmt::format_to(std::back_inserter(text),
                   ",\n{{\"ph\": \"X\", \"pid\": 1, \"tid\": {}, \"cat\": \"{}\", \"name\": \"{}\", \"ts\": {:.3f}, \"dur\": {:.3f}}}",
                   span.lane, span.busy ? "busy" : "wait", span.what, static_cast<f64>(span.begin_ns - start_ns) * 1e-3,
                   static_cast<f64>(span.end_ns - span.begin_ns) * 1e-3);
  write_text_file(path, text + "\n]}\n");
}

}  // namespace stoker
