// How good this model's gates guess, as emulated gates have it (scheduler/trace/emulated_lookahead): the correlation of scores at
// which as many of a trace's experts are foreseen as the model's own gates were measured to foresee.
#pragma once

#include <string>

#include "scheduler/trace/emulated_lookahead.h"

namespace stoker {

// recall@top-k by distance in layers; 0: not measured.
using GateRecall = std::array<f64, Predictor::kMaxDistance>;

// `otherwise` where there is no measurement, or the trace is too short to compare. Throws Error when it cannot be read.
LookaheadQuality fit_gates(const std::string& trace, const GateRecall& recall, const LookaheadQuality& otherwise);

}  // namespace stoker
