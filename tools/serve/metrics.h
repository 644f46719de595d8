// Counters in Prometheus' text format, with llama-server's names where the meaning is the same.
#pragma once

#include <map>
#include <string>

#include "tools/serve/service.h"

namespace stoker {

// `answers`: how many responses had each HTTP status.
std::string metrics_text(const Service& service, const std::map<int, i64>& answers);

}  // namespace stoker
