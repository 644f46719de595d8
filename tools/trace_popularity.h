// How popular experts are by a recorded routing.
#pragma once

#include "scheduler/policy/popularity.h"

namespace stoker {

class TraceSource;

// Reads the source to its end. Throws Error for a damaged record.
Popularity popularity_of(TraceSource& source);

}  // namespace stoker
