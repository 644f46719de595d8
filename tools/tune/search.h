// Search: which policies ought to be fast, by simulating this machine on a recorded routing. Whether guesses pay is not
// asked here: it depends on how good they are for this model, and that is tried for real.
#pragma once

#include <string>
#include <vector>

#include "tools/options.h"

namespace stoker {

struct Candidate {
  Options options;  // of run, model and budget included
  f64 simulated_tokens_per_second = 0;

  std::string describe() const;              // "lru, no prefetch"
  std::vector<Setting> settings() const;  // as a profile has them
};

struct SearchRequest {
  Options options;              // of run: model, --ram, ring depth and piece; the policy is searched
  std::string machine, routing;  // a machine file and a trace
};

// Every policy, the fastest on the simulated machine first. Shows progress. Throws Error, or Interrupted.
std::vector<Candidate> search_policies(const SearchRequest& request);

}  // namespace stoker
