#include "bench/routing_traces.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>

#include "kernels/base/error.h"

namespace stoker {

namespace {

// For the shell.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

void read_token(RoutingTrace& trace, const char* text) {
  for (i64 i = 0; i < trace.layers * trace.top_k; i++) {
    char* end = nullptr;
    i64 id = std::strtol(text, &end, 10);
    i64 weight = std::strtol(end, &end, 10);
    if (id < 0 || id >= trace.experts || weight <= 0) fail("trace {}: token {} is damaged", trace.name, trace.tokens());
    trace.ids.push_back(static_cast<i32>(id));
    trace.weights.push_back(static_cast<f32>(weight) / 10000);
    text = end;
  }
}

}  // namespace

std::vector<RoutingTrace> read_routing_traces(const std::string& folder) {
  std::string command = "python3 " + quoted(STOKER_ROUTING_DATA) + " " + quoted(folder);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) fail("{}: cannot be started", command);
  std::vector<RoutingTrace> traces;
  char* line = nullptr;
  size_t capacity = 0;
  while (getline(&line, &capacity, pipe) > 0) {
    std::string_view text(line);
    if (text.starts_with("trace ")) {
      RoutingTrace& trace = traces.emplace_back();
      std::string word;
      std::istringstream(line) >> word >> trace.name >> trace.layers >> trace.experts >> trace.top_k;
    } else if (!text.starts_with("-") && !traces.empty()) {
      read_token(traces.back(), line);
    }
  }
  std::free(line);
  if (pclose(pipe) != 0) fail("{}: failed; its message is above", command);
  if (traces.empty()) fail("{}: no traces (NAME.tar.xz, NAME.route.csv.gz) below this folder", folder);
  return traces;
}

}  // namespace stoker
