// Trial: the model generating on this machine with some settings, to see how fast it is.
#pragma once

#include <string>
#include <vector>

#include "tools/options.h"
#include "tools/tune/gate_fit.h"

namespace stoker {

struct TrialText {
  std::vector<i32> tokens;  // teacher-forced: every next token comes from it
  i64 warm_up = 0;          // of them, before the clock starts
};

// Tokens per second after the warm-up. Loads the model and lets it go again. Throws Error, or Interrupted after Ctrl-C.
f64 trial_tokens_per_second(const Options& options, const TrialText& text, const std::string& label);

struct Recording {
  i64 ram_bytes = 0;         // for experts, as the engine had them
  bool all_resident = false;  // nothing streams
  GateRecall gate_recall{};   // how many experts the options' predictor foresaw
};
// Generates along the text, with guesses of all distances, and records the routing at `trace_path`.
Recording record_trial(const Options& options, const TrialText& text, const std::string& trace_path);

}  // namespace stoker
