// Counters in Prometheus' text format, with llama-server's names where the meaning is the same.
#pragma once

#include <string>

#include "runtime/batcher.h"

namespace stoker {

std::string metrics_text(const BatcherStatus& status);

}  // namespace stoker
