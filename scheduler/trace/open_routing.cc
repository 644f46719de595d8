#include "scheduler/trace/open_routing.h"

#include "kernels/base/error.h"
#include "scheduler/trace/synthetic_routing.h"
#include "scheduler/trace/trace_reader.h"

namespace stoker {

namespace {

constexpr std::string_view kSynthetic = "synthetic:";

std::unique_ptr<TraceSource> open(const RoutingRequest& r) {
  if (!r.what.starts_with(kSynthetic)) return std::make_unique<TraceReader>(r.what);
  // Whole prompts, so that the first tokens do not depend on how many there are.
  i64 prompts = div_up(r.tokens, r.prompt_tokens);
  SyntheticOptions options{.shape = r.shape, .profile = std::string_view(r.what).substr(kSynthetic.size()),
                           .tokens = prompts * r.prompt_tokens, .prompts = prompts, .seed = r.seed};
  return std::make_unique<SyntheticRouting>(options);
}

}  // namespace

std::unique_ptr<TraceSource> open_routing(const RoutingRequest& r) {
  std::unique_ptr<TraceSource> source = open(r);
  const TraceHeader& h = source->header();
  if (h.experts != r.shape.experts || h.top_k != r.shape.top_k)
    fail("--routing {}: its tokens use {} of {} experts, the model's {} of {}; give a trace of such a model, or "
         "synthetic:default",
         r.what, h.top_k, h.experts, r.shape.top_k, r.shape.experts);
  return source;
}

}  // namespace stoker
