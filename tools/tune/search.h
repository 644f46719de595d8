// Search: which settings ought to be fast, by simulating this machine on a recorded routing: policies, then guesses of the
// fastest policies (predictor, layers ahead), then how likely a guess must be to be read, then the governor's window and gain.
// Emulated gates guess as well as the model's own did while its routing was recorded. The best few are then tried for real.
#pragma once

#include <string>
#include <vector>

#include "tools/options.h"
#include "tools/tune/gate_fit.h"

namespace stoker {

struct Candidate {
  Options options;  // of run, model and budget included
  f64 simulated_tokens_per_second = 0;

  std::string describe() const;              // "lru, no prefetch"
  std::vector<Setting> settings() const;  // as a profile has them
};

struct SearchRequest {
  Options options;               // of run: model, --ram, ring depth and piece; the rest is searched
  std::string machine, routing;  // a machine file and a trace
  GateRecall gate_recall{};      // of gate+shared
  f64 seconds = 0;               // that it may take: of a long routing only the beginning is simulated, 32 tokens at least
};

// The fastest on the simulated machine first.
struct SearchResult {
  std::vector<Candidate> without;  // every policy, nothing read ahead
  std::vector<Candidate> with;     // guesses, read ahead
  std::vector<Candidate> governed; // the best of these as run has it, by governors; always on comes last unless it gains 1 %
  i64 tokens = 0;                  // that were simulated
};

// Shows progress. Throws Error, or Interrupted.
SearchResult search_settings(const SearchRequest& request);

}  // namespace stoker
